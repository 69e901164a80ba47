"""Keeps randomly chosen visual tokens: the baseline that every selection must beat.

It looks at nothing, costs nothing, and is exact about the budget.

Not from a paper. The choice depends on `seed` and on the number of tokens of a picture, and on nothing else: pictures
of one size keep the same places, alone or in a batch, on every device, and a smaller budget keeps a subset of a larger
one. Vary `seed` to average over choices. With `place="cache"` tokens are left alone and entries leave the cache, in
every layer and head others: the baseline of evictions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._entries import best
from vtprune.methods._select import check_choice, index_mask
from vtprune.methods.base import CacheEntries, Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("random")
@dataclasses.dataclass(frozen=True)
class Random(Method):
    """Random selection at the encoder's output, or in the cache."""

    kind = "baseline"
    places = (Place.ENCODER_OUTPUT,)
    cost = "none"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture; in the cache, entries of every head
    seed: int = 0  # whole number >= 0
    place: Literal["output", "cache"] = "output"  # what it acts on: the encoder's output, or what decoder layers hold
    positions: Positions = "original"  # position ids after the removal: "original" or "compact"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, got {self.seed!r}.")
        check_choice("place", self.place, ("output", "cache"))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, or one in the cache of every layer."""
        if self.place == "cache":
            return [Stage(Place.CACHE, self.evict, tuple(range(model.decoder_layers)))]
        return [Stage(Place.ENCODER_OUTPUT, self.decide, positions=self.positions)]

    def decide(self, pictures: Pictures) -> Keep:
        """Keep the same random places in every picture."""
        mask = random_mask(pictures.tokens, pictures.count(self.keep), self.seed)
        return Keep(mask.to(pictures.encoded.device).expand(pictures.encoded.shape[0], -1))

    def evict(self, entries: CacheEntries) -> Keep:
        """Keep random entries in every head."""
        heads = torch.arange(entries.candidate.shape[1], device=entries.candidate.device)[:, None]
        number = entries.candidate.long().cumsum(2) + (heads << 24) + (entries.layer << 44)
        return Keep(best(scrambled(number, self.seed), entries.counts(self.keep), entries.candidate))


def scrambled(x: Tensor, seed: int) -> Tensor:
    """A number in [0, 2**24) for every whole number of x, as if drawn at random; equal ones for equal numbers.

    Steps of SplitMix64 (Steele et al., OOPSLA 2014), without state, so that the order of the calls does not matter.
    """
    x = x + _signed((seed + 1) * 0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * _signed(factor)
    return (x >> 40 & (1 << 24) - 1).float()


def _signed(x: int) -> int:
    """The last 64 bits of x as torch's int64 has them."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


def random_mask(tokens: int, count: int, seed: int) -> Tensor:
    """Mark `count` of `tokens` places: bool, (1, tokens), on the CPU."""
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    return index_mask(order[None, :count], tokens)
