"""Keeps in the cache of every layer as many visual entries as it takes to gather a given share of the attention.

How many that are follows from the sums of attention that entries received, which ones from the means over the queries
that see them; all heads of a layer decide together. What is not chosen leaves the cache (the paper's second version) or
is held in fewer bits (`bits`, the first version).

Paper: "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification" (before: "... and KV Cache
Compression"), arXiv 2410.08584. Authors' code: none found.
Differs from the paper in: the prefill stays whole, so that only memory and decoding are saved; attention is counted on
visual entries only, and only these leave, unless `text=True`; by default the queries of the text behind the last
picture are the probes, and see all of it; without `tau` every layer keeps as many as `keep` says; rows of a batch
decide by themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import LayerBudget
from vtprune.kernels.quantise import WIDTHS
from vtprune.methods._entries import received, seen_by
from vtprune.methods._probes import behind_first, last_valid, probe_rows, shown_by
from vtprune.methods._select import check_choice, check_number, check_whole_numbers, top_k_mask
from vtprune.methods.base import CacheEntries, Keep, Method, ModelInfo, Place, Stage, Store, all_layers
from vtprune.methods.registry import register


@register("zipvl")
@dataclasses.dataclass(frozen=True)
class ZipVL(Method):
    """One decision per layer, after the prefill. The paper's setting: `keep=1.0, tau=0.975, queries="probes"`.

    With `tau`, which has no budget of its own, `keep` is the most that may stay; without it, exactly that stays.
    """

    kind = "cache"
    places = (Place.CACHE,)
    paper = "ZipVL, arXiv 2410.08584"
    cost = "N T C per decoder layer; with queries='probes' (N + T) C for each of at most 128"
    needs_text = True
    layered = True

    keep: LayerBudget = 0.25  # ratio in (0, 1] or entries per picture, or a list by layer; with `text`, of the prompt
    tau: float | None = None  # share in (0, 1] of the attention on visual entries; the paper has about 0.975
    bits: tuple[int, int] | None = None  # of chosen and of other entries (2, 4, 8, or 16: as they are), none leaves
    queries: Literal["closing", "probes"] = "closing"  # whose attention counts: of the text behind the pictures, or ...
    recent: int = 64  # ... of so many of the last queries, >= 1, ...
    random: int = 64  # ... and of so many, >= 0, drawn from those before, behind the first visual entry
    seed: int = 0  # of the draw, whole number >= 0
    text: bool = False  # whether text may leave, or be rounded, too; the last token stays as it is

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.tau is not None:
            check_number("tau", self.tau, 0, 1, above_low=True)
        if self.bits is not None:
            bits = check_whole_numbers("bits", self.bits, WIDTHS[0], 2)
            if not isinstance(bits, tuple) or not set(bits) <= {*WIDTHS, 16} or bits[0] <= bits[1]:
                raise ValueError(f"bits must be two of {(*WIDTHS, 16)}, the greater first, got {self.bits!r}.")
            object.__setattr__(self, "bits", bits)
        check_choice("queries", self.queries, ("closing", "probes"))
        check_whole_numbers("recent", self.recent, 1)
        check_whole_numbers("random", self.random, 0)
        check_whole_numbers("seed", self.seed, 0)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One decision in every layer."""
        signals = frozenset({"closing_queries" if self.queries == "closing" else "all_queries"})
        return [Stage(Place.CACHE, self.decide, all_layers(model, self.keep), signals, text=self.text)]

    def decide(self, entries: CacheEntries) -> Keep | Store:
        """Choose the entries that gather the attention."""
        if self.queries == "probes":
            chosen = probe_rows(behind_first(entries), self.recent, self.random, self.seed)
            entries = shown_by(entries, *chosen)
        mass, seen = received(entries).sum(1), seen_by(entries).clamp_min(1)
        among, always = entries.candidate[:, 0], torch.zeros_like(entries.valid)
        if self.text:
            always = among & last_valid(entries)
        counts = entries.counts(self.keep)
        if self.tau is not None:
            counts = counts.minimum(entries_for(self.tau, mass, among))
        counts = (counts - always.sum(1)).clamp_min(0)
        mask = always | top_k_mask(mass / seen, counts, among & ~always)
        mask = mask[:, None].expand_as(entries.candidate)
        if self.bits is None:
            return Keep(mask)
        return Store(torch.where(always[:, None], 16, torch.where(mask, *self.bits)))


def entries_for(tau: float, mass: Tensor, among: Tensor) -> Tensor:
    """How few entries hold a share `tau` of the mass of all: (rows,), at least 1 where there is any.

    Args:
        tau: In (0, 1].
        mass: (rows, entries), not negative.
        among: bool, (rows, entries), which entries count.
    """
    sums = mass.masked_fill(~among, 0).sort(1, descending=True).values.cumsum(1)
    return (1 + (sums < tau * sums[:, -1:]).sum(1)).minimum(among.sum(1))
