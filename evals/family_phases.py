"""The recipes of tiny-internvl and tiny-qwen2.5-vl as data; both start from tiny-llava's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vtprune.evals.phases import LEFT_AND_RIGHT, Phase


@dataclass(frozen=True)
class FamilyPhase(Phase):
    """A stretch of training of a model that takes clips as well.

    Attributes:
        clips: Share of the steps that show clips.
        clips_per_step: Clips in such a step.
        heads: What the losses of the heads weigh beside the answers': at the patches, the tokens and in the decoder.
    """

    clips: float = 0.0
    clips_per_step: int = 8
    heads: tuple[float, float, float] = (0.25, 0.3, 0.3)

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if not 0 <= self.clips <= 1 or self.clips_per_step < 1:
            raise ValueError(
                f"clips must be in 0 .. 1 and clips_per_step >= 1, got {self.clips} and {self.clips_per_step}"
            )
        if len(self.heads) != 3 or min(self.heads) < 0:
            raise ValueError(f"heads must be three numbers >= 0, got {self.heads}")


_SHARES = (0.8, 0.9, 1.0, 2.2, 0.7, 1.2)
_TOWER: dict[str, Any] = dict(pictures=16, questions=0, characters=0.75, warmup=60, final=1.0)
_ASKED: dict[str, Any] = dict(learning_rate=2.2e-3, shares=_SHARES, token_weights=LEFT_AND_RIGHT, characters=0.75)

INTERNVL_PHASES: tuple[FamilyPhase, ...] = (
    FamilyPhase("tower", 6, learning_rate=2.2e-3, **_TOWER),
    FamilyPhase("answers", 7, pictures=16, tower_factor=0.6, warmup=50, final=1.0, clips=0.15, **_ASKED),
    FamilyPhase("end", 3, pictures=16, tower_factor=0.6, warmup=1, final=0.04, clips=0.08, goes_on=True, **_ASKED),
)
"""The phases of the shipped tiny-internvl, in minutes of one core."""

QWEN_PHASES: tuple[FamilyPhase, ...] = (
    FamilyPhase("tower", 5.5, learning_rate=2.4e-3, **_TOWER),
    FamilyPhase("answers", 3.5, pictures=16, tower_factor=0.7, warmup=50, final=1.0, goes_on=True, **_ASKED),
    FamilyPhase(
        "clips",
        25,
        tower_factor=0.8,
        warmup=1,
        final=1.0,
        clips=0.6,
        goes_on=True,
        pictures=32,
        clips_per_step=20,
        **_ASKED,
    ),
    FamilyPhase(
        "end",
        15,
        tower_factor=1.0,
        warmup=1,
        final=0.05,
        clips=0.5,
        goes_on=True,
        pictures=32,
        clips_per_step=20,
        **_ASKED,
    ),
)
"""The phases of the shipped tiny-qwen2.5-vl, in minutes of one core."""
