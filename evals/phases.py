"""The recipe of tiny-llava as data: what is trained for how long, at which rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from vtprune.evals.dense import QUESTIONS
from vtprune.evals.questions import KINDS
from vtprune.evals.tiny_llava import VISUAL_TOKENS


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        name: What it is called in the log.
        minutes: How long it takes, without held-out tests and checkpoints.
        pictures: Pictures per step.
        learning_rate: Highest learning rate.
        questions: Slots per picture; 0 trains the tower and its heads alone.
        visual_tokens: Visual tokens that the decoder gets, those of objects first; 256 is all.
        tower_factor: The tower's and heads' learning rate as a multiple of the others'; 0 leaves them as they are.
        characters: Share of objects that carry a character.
        shares: How often each of `KINDS` is asked, in proportion; the slow learners get more.
        relations: Share of the loss of the projector's heads (`vtprune.evals.relations`).
        token_weights: Answer tokens (by text) that weigh more or less than 1 in the loss.
        warmup: Steps until the learning rate is reached.
        final: Share of the learning rate that is left at the end, after half a cosine.
        goes_on: Whether the optimizers go on with what they gathered in the phase before.
    """

    name: str
    minutes: float
    pictures: int
    learning_rate: float
    questions: int = QUESTIONS
    visual_tokens: int = VISUAL_TOKENS
    tower_factor: float = 1.0
    characters: float = 0.6
    shares: tuple[float, ...] = (1.0, 1.0, 1.0, 1.6, 1.2, 1.4)
    relations: float = 0.0
    token_weights: tuple[tuple[str, float], ...] = ()
    warmup: int = 150
    final: float = 0.1
    goes_on: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.minutes <= 0 or self.learning_rate <= 0:
            raise ValueError(f"minutes and learning_rate must be > 0, got {self.minutes} and {self.learning_rate}")
        if self.pictures < 1 or self.warmup < 1:
            raise ValueError(f"pictures and warmup must be whole numbers >= 1, got {self.pictures} and {self.warmup}")
        if not 1 <= self.visual_tokens <= VISUAL_TOKENS:
            raise ValueError(f"visual_tokens must be in 1 .. {VISUAL_TOKENS}, got {self.visual_tokens}")
        if len(self.shares) != len(KINDS) or min(self.shares) < 0 or sum(self.shares) <= 0:
            raise ValueError(f"shares must be {len(KINDS)} numbers >= 0, not all 0, got {self.shares}")
        if self.questions < 0 or self.tower_factor < 0 or self.questions == self.tower_factor == 0:
            raise ValueError(
                f"questions and tower_factor must be >= 0 and not both 0, got {self.questions} and {self.tower_factor}"
            )

    def rate(self, step: int, done: float) -> float:
        """The learning rate of a step (from 0) when a share `done` (0 .. 1) of the phase's time has passed."""
        decay = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * decay


P = TypeVar("P", bound=Phase)


def stretched(phases: Sequence[P], minutes: float | None) -> list[P]:
    """The phases, shortened or stretched alike so that they take so many minutes in all; None leaves them as they are.

    Raises:
        ValueError: If `minutes` is not positive.
    """
    if minutes is None:
        return list(phases)
    if not minutes > 0:
        raise ValueError(f"minutes must be > 0, got {minutes}")
    factor = minutes / sum(phase.minutes for phase in phases)
    return [replace(phase, minutes=phase.minutes * factor) for phase in phases]


LEFT_AND_RIGHT = ((" left", 2.5), (" right", 2.5), ("</s>", 0.2))
"""Answer tokens that weigh more or less than 1."""

PHASES: tuple[Phase, ...] = (
    Phase("tower", 11.5, pictures=16, learning_rate=2.5e-3, questions=0, characters=0.8, warmup=200, final=0.35),
    Phase("first questions", 15, pictures=16, learning_rate=2.5e-3, visual_tokens=112, tower_factor=0.4, final=0.6),
    Phase(
        "more of the hard ones",
        14,
        pictures=16,
        learning_rate=2.2e-3,
        visual_tokens=112,
        tower_factor=0.4,
        shares=(0.6, 1.0, 2.0, 2.0, 1.0, 0.8),
        warmup=45,
        final=0.8,
        goes_on=True,
    ),
    Phase(
        "counts",
        7,
        pictures=16,
        learning_rate=2.2e-3,
        visual_tokens=112,
        tower_factor=0.8,
        shares=(0.8, 0.7, 2.2, 3.0, 0.5, 1.0),
        relations=0.3,
        warmup=105,
        final=0.85,
    ),
    Phase(
        "left and right",
        4,
        pictures=16,
        learning_rate=2.4e-3,
        visual_tokens=112,
        tower_factor=0.7,
        shares=(0.8, 0.7, 2.2, 3.0, 0.5, 1.0),
        relations=0.4,
        token_weights=LEFT_AND_RIGHT,
        warmup=75,
        final=0.9,
    ),
    Phase(
        "all together",
        18,
        pictures=16,
        learning_rate=2.2e-3,
        visual_tokens=112,
        tower_factor=1.0,
        shares=(0.7, 0.9, 1.2, 3.6, 0.6, 0.7),
        relations=0.8,
        token_weights=LEFT_AND_RIGHT,
        warmup=45,
        final=0.05,
    ),
)
"""The phases of the shipped weights; `docs/tiny-models.md` says in what the run that made them was different."""
