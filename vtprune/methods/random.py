"""Keeps randomly chosen visual tokens: the baseline that every selection must beat.

It looks at nothing, costs nothing, and is exact about the budget.

Not from a paper. The choice depends on `seed` and on the number of tokens of a picture, and on nothing else: pictures
of one size keep the same places, alone or in a batch, on every device, and a smaller budget keeps a subset of a larger
one. Vary `seed` to average over choices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._select import index_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("random")
@dataclasses.dataclass(frozen=True)
class Random(Method):
    """Random selection at the encoder's output."""

    kind = "baseline"
    places = (Place.ENCODER_OUTPUT,)
    cost = "none"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture
    seed: int = 0  # whole number >= 0
    positions: Positions = "original"  # position ids after the removal: "original" or "compact"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, got {self.seed!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output."""
        return [Stage(Place.ENCODER_OUTPUT, self.decide, positions=self.positions)]

    def decide(self, pictures: Pictures) -> Keep:
        """Keep the same random places in every picture."""
        mask = random_mask(pictures.tokens, pictures.count(self.keep), self.seed)
        return Keep(mask.to(pictures.encoded.device).expand(pictures.encoded.shape[0], -1))


def random_mask(tokens: int, count: int, seed: int) -> Tensor:
    """Mark `count` of `tokens` places: bool, (1, tokens), on the CPU."""
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    return index_mask(order[None, :count], tokens)
