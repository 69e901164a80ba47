"""Keeps visual tokens at even distances in raster order: the content-blind baseline without chance.

It looks at nothing either, but leaves no large gaps along the raster.

Not from a paper. Of N tokens, place (2 i + 1) N / (2 K), rounded down, stays for i = 0 .. K - 1.
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


@register("uniform")
@dataclasses.dataclass(frozen=True)
class Uniform(Method):
    """Evenly spread selection at the encoder's output."""

    kind = "baseline"
    places = (Place.ENCODER_OUTPUT,)
    cost = "none"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture
    positions: Positions = "original"  # position ids after the removal: "original" or "compact"

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output."""
        return [Stage(Place.ENCODER_OUTPUT, self.decide, positions=self.positions)]

    def decide(self, pictures: Pictures) -> Keep:
        """Keep the same evenly spread places in every picture."""
        mask = uniform_mask(pictures.tokens, pictures.count(self.keep))
        return Keep(mask.to(pictures.encoded.device).expand(pictures.encoded.shape[0], -1))


def uniform_mask(tokens: int, count: int) -> Tensor:
    """Mark `count` evenly spread places of `tokens`: bool, (1, tokens), on the CPU."""
    places = (2 * torch.arange(count) + 1) * tokens // (2 * max(count, 1))
    return index_mask(places[None], tokens)
