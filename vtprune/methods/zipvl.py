"""Keeps in the cache of every layer as many visual entries as it takes to gather a given share of the attention.

How many that are follows from the sums of attention that entries received, which ones from the means over the queries
that see them; all heads of a layer decide together. What is not chosen leaves the cache (the paper's second version) or
is held in fewer bits (`bits`, the first version).

Paper: "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification" (before: "... and KV Cache
Compression"), arXiv 2410.08584. Authors' code: none found.
Differs from the paper in: unless `sparse_prefill=True` the prefill stays whole, so that only memory and decoding are
saved; attention is counted on visual entries only, and only these leave, unless `text=True`; by default the queries of
the text behind the last picture are the probes, and see all of it; without `tau` every layer keeps as many as `keep`
says; rows of a batch decide by themselves. With `sparse_prefill=True` what is not chosen neither asks nor is seen in
the layer, but goes on through its MLP: the attention's products get smaller, its projections and the MLP do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import Budget, LayerBudget
from vtprune.kernels import compact_index, gather_rows
from vtprune.kernels.quantise import WIDTHS
from vtprune.methods._entries import age, received, seen_by
from vtprune.methods._probes import behind_first, last_valid, probe_rows, shown_by
from vtprune.methods._select import check_choice, check_number, check_whole_numbers, given, top_k_mask
from vtprune.methods.base import (
    Attend,
    CacheEntries,
    Keep,
    LayerSlots,
    Method,
    ModelInfo,
    Part,
    Place,
    Stage,
    Store,
    all_layers,
)
from vtprune.methods.registry import register


@register("zipvl")
@dataclasses.dataclass(frozen=True)
class ZipVL(Method):
    """One decision per layer, after the prefill. The paper's setting: `keep=1.0, tau=0.975, queries="probes"`.

    With `tau`, which has no budget of its own, `keep` is the most that may stay; without it, exactly that stays.
    """

    kind = "cache"
    places = (Place.ATTENTION, Place.CACHE)
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
    sparse_prefill: bool = False  # whether the prefill attends among the chosen tokens and text only; `keep` a ratio

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
        if self.sparse_prefill and self.text:
            raise ValueError("sparse_prefill=True chooses among visual tokens only; it needs text=False.")
        if self.sparse_prefill and any(isinstance(x, int) for x in _each(self.keep)):
            raise ValueError(
                f"sparse_prefill=True chooses in all pictures at once; keep must be a ratio, got {self.keep!r}."
            )

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One decision in every layer."""
        signals = frozenset({"closing_queries" if self.queries == "closing" else "all_queries"})
        layers = all_layers(model, self.keep)
        stages = [Stage(Place.CACHE, self.decide, layers, signals, text=self.text)]
        if self.sparse_prefill:
            signals = frozenset({"queries_keys_values", "cells"})
            stages.insert(0, Stage(Place.ATTENTION, self.attend, layers, signals))
        return stages

    def attend(self, slots: LayerSlots) -> Attend | None:
        """Let the chosen tokens and text attend to one another, and to what earlier calls left."""
        if not slots.visual.shape[1]:
            return None
        entries = as_entries(slots, self.queries == "closing")
        stays = entries.valid & (~entries.candidate[:, 0] | self.chosen(entries) | last_valid(entries))
        asked, seen = (_listed(x) for x in (stays[:, slots.past :], stays))
        return Attend((Part(slots=asked, entries=seen),))

    def decide(self, entries: CacheEntries) -> Keep | Store:
        """Let leave, or round to fewer bits, what is not chosen."""
        mask = self.chosen(entries)[:, None].expand_as(entries.candidate)
        if self.bits is None:
            return Keep(mask)
        bits = torch.where(mask, *self.bits)
        return Store(torch.where(last_valid(entries)[:, None], 16, bits) if self.text else bits)

    def chosen(self, entries: CacheEntries) -> Tensor:
        """The entries that gather the attention: bool, (rows, entries)."""
        if self.queries == "probes":
            chosen = probe_rows(behind_first(entries), self.recent, self.random, self.seed)
            entries = shown_by(entries, *chosen)
        mass, seen = received(entries).sum(1), seen_by(entries).clamp_min(1)
        among, always = entries.candidate[:, 0], torch.zeros_like(entries.valid)
        if self.text:
            always = among & last_valid(entries)
        if self.sparse_prefill:  # pictures are not told apart at the attention
            entries = dataclasses.replace(entries, arrived=entries.arrived.sum(1, keepdim=True))
        counts = entries.counts(self.keep)
        if self.tau is not None:
            counts = counts.minimum(entries_for(self.tau, mass, among))
        counts = (counts - always.sum(1)).clamp_min(0)
        return always | top_k_mask(mass / seen, counts, among & ~always)


def entries_for(tau: float, mass: Tensor, among: Tensor) -> Tensor:
    """How few entries hold a share `tau` of the mass of all: (rows,), at least 1 where there is any.

    Args:
        tau: In (0, 1].
        mass: (rows, entries), not negative.
        among: bool, (rows, entries), which entries count.
    """
    sums = mass.masked_fill(~among, 0).sort(1, descending=True).values.cumsum(1)
    return (1 + (sums < tau * sums[:, -1:]).sum(1)).minimum(among.sum(1))


def as_entries(slots: LayerSlots, closing: bool) -> CacheEntries:
    """What a stage at the attention sees, as a stage at the cache would see it once the attention has run.

    Args:
        slots: With queries, keys, values and cells.
        closing: Whether to show only the queries of the text behind the last picture, those of the last token where
            there is none; else all.
    """
    queries, keys, values = (
        given(x, "zipvl", "queries_keys_values") for x in (slots.queries, slots.keys, slots.values)
    )
    where, past = given(slots.where, "zipvl", "cells"), slots.past
    rows, entries = len(keys), keys.shape[2]
    valid = torch.ones(rows, entries, dtype=torch.bool, device=keys.device) if slots.valid is None else slots.valid
    valid = valid.to(keys.device)
    visual, tokens = (_marked(slots.visual, x, entries - past) for x in (slots.visual >= 0, where.cells.map >= 0))
    behind = visual.flip(1).long().cumsum(1).flip(1) == 0
    own = valid[:, past:]
    asking = own & (behind & visual.any(1, keepdim=True) | (age(own) == 0)) if closing else own
    at, counted = compact_index(asking)
    candidate = torch.nn.functional.pad(tokens, (past, 0))
    return CacheEntries(
        layer=slots.layer,
        queries=gather_rows(queries.transpose(1, 2), at).transpose(1, 2),
        query_at=at + past,
        query_valid=counted,
        keys=keys,
        values=values,
        scale=slots.scale,
        valid=valid,
        candidate=candidate[:, None].expand(-1, keys.shape[1], -1),
        picture=candidate.long() - 1,
        arrived=tokens.sum(1, keepdim=True),
        memory={},
    )


def _marked(index: Tensor, there: Tensor, slots: int) -> Tensor:
    """Bool (rows, slots), the slots of a list (rows, n) that are `there`."""
    marks = torch.zeros(len(index), slots + 1, dtype=torch.bool, device=index.device)
    return marks.scatter_(1, index.where(there, slots), True)[:, :slots]


def _listed(mask: Tensor) -> Tensor:
    """Where a mask (rows, n) is True: (rows, 1, most), -1 in front of shorter rows."""
    index, valid = compact_index(mask)
    return (index if valid is None else index.masked_fill(~valid, -1))[:, None]


def _each(keep: LayerBudget) -> Sequence[Budget]:
    return keep if isinstance(keep, Sequence) else (keep,)
