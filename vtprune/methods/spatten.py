"""Drops entries of the cache in a cascade: what one layer lets go, all layers behind it let go, too.

Attention that an entry receives is added up over queries, heads and layers, and goes on adding up while decoding. The
first layers keep everything; then every layer keeps fewer than the one before, the most important of those that are
still there, the same ones in all heads.

The authors' code for language models does something else (`rule="turns"`): there is no cascade, and nothing leaves
while decoding; before a further turn each head drops what the last token looked at least, so that the coming tokens
have room. It ranks by logits, before mask and softmax.

Paper: "SpAtten: Efficient Sparse Attention Architecture with Cascade Token and Head Pruning", HPCA 2021,
arXiv 2012.09852. Authors' code: github.com/mit-han-lab/spatten-llm (MIT); the cascade is not in it.
Differs from the paper in: only visual entries leave, unless `text=True`; by default the queries of the text behind the
last picture count, all of which see all of it; hidden states stay, so that the prefill is untouched; positions are
never made dense (the authors' code turns keys anew at their places in the cache). Local pruning of values (`values`)
is for decoded tokens and visual entries only, and an experiment: dense kernels save nothing by it. Nor would they by
pruned heads, or by bits that are fetched later, which are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget, LayerBudget, check_keep, token_counts
from vtprune.methods._cuts import counts_by_line
from vtprune.methods._entries import best, counted, newest, received, share
from vtprune.methods._reads import one_token, wanted
from vtprune.methods._select import check_choice, check_number, check_whole_numbers, given
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
    all_layers,
)
from vtprune.methods.h2o import heavy_and_recent
from vtprune.methods.registry import register


@register("spatten")
@dataclasses.dataclass(frozen=True)
class SpAtten(Method):
    """One eviction per layer after the prefill; with `text=True` one per decoded token after that.

    A single `keep` is that of the last layer, towards which counts fall in equal steps. The setting of the authors'
    code: `rule="turns", keep=300, recent=0.5, room=64, text=True` (150 important ones, 150 recent ones).
    """

    kind = "cache"
    places = (Place.ATTENTION, Place.CACHE)
    paper = "SpAtten, HPCA 2021, arXiv 2012.09852"
    cost = "N T C per decoder layer; with queries='all' (N + T)^2 C"
    needs_text = True
    layered = True

    keep: LayerBudget = 0.25  # ratio in (0, 1] or entries per picture, or a list by layer; with `text`, of the prompt
    first: float = 0.15  # share of the layers, in [0, 1), that keep everything, rounded up; no effect on a list
    queries: Literal["closing", "all"] = "closing"  # whose attention counts: of the text behind the pictures, or of all
    recent: float = 0.0  # share in [0, 1] of what is kept that is left to the most recent ones, rounded down
    values: Budget = (
        1.0  # ratio in (0, 1] of a row's visual values, or how many, that a decoded token uses in each head
    )
    text: bool = False  # whether text may leave too, at every step (at every turn, with `rule="turns"`)
    rule: Literal["cascade", "turns"] = "cascade"  # "turns": every head by itself, before further turns only
    start: int = 0  # with "turns": first candidates that always stay beside those of `keep`
    room: int = 64  # with "turns": tokens of an answer that will need room beside those of the turn

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("first", self.first, 0, 1 - 1e-9)
        check_choice("queries", self.queries, ("closing", "all"))
        check_number("recent", self.recent, 0, 1)
        object.__setattr__(self, "values", check_keep(self.values, "values"))
        check_choice("rule", self.rule, ("cascade", "turns"))
        check_whole_numbers("start", self.start, 0)
        check_whole_numbers("room", self.room, 0)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """Every layer adds up importance; those behind the first ones evict."""
        signals, layers = frozenset({f"{self.queries}_queries"}), all_layers(model, self.keep)
        found: list[Stage] = []
        if self.values != 1.0:
            asked = frozenset({"queries_keys_values"})
            found = [Stage(Place.ATTENTION, self.local_values, layers, asked, decodes=True)]
        if self.rule == "turns":
            found.append(Stage(Place.CACHE, self.at_turns, layers, signals, text=self.text, decodes=True, turns=True))
        else:
            decide = functools.partial(self.decide, layers=model.decoder_layers)
            found.append(Stage(Place.CACHE, decide, layers, signals, text=self.text, decodes=self.text))
        return found

    def decide(self, entries: CacheEntries, layers: int) -> Keep:
        """Keep the most important and the most recent of those that are still there.

        Args:
            entries: What a stage is shown.
            layers: Number of decoder layers.
        """
        slot = slots_of(entries)
        importance = accumulated(entries, slot)
        before, alive = entries.across.get("alive"), entries.valid
        if entries.layer and before is not None and before.shape[1] == entries.fed:  # not of an earlier call
            alive = before.to(slot.device).gather(1, slot)
        among = entries.candidate[:, :1] & alive[:, None]
        counts = self.counts(entries, layers)
        recent = share(counts, self.recent)
        mask = heavy_and_recent(importance[:, None], among, counts - recent, recent)
        # What a layer does not hold any more is lost for those behind it, too.
        stays = (mask | ~entries.candidate[:, :1]) & entries.valid[:, None]
        alive = torch.zeros_like(entries.across["importance"]).scatter_add(1, slot, stays[:, 0].float()) > 0
        entries.across["alive"] = alive
        return Keep(mask.expand_as(entries.candidate))

    def counts(self, entries: CacheEntries, layers: int) -> Tensor:
        """How many entries a layer keeps, (rows,)."""
        if isinstance(self.keep, Sequence):
            return entries.counts(self.keep)
        begin = math.ceil(self.first * layers)
        if entries.layer < begin:
            return torch.full_like(entries.arrived[:, 0], entries.candidate.shape[2])
        arrived = entries.arrived.clamp_min(self.keep) if entries.grows and self.keep > 1 else entries.arrived
        return counts_by_line(self.keep, arrived, (entries.layer - begin + 1) / (layers - begin))

    def at_turns(self, entries: CacheEntries) -> Keep | None:
        """Note what the last call looked at; before a further turn keep the best by that, and the most recent."""
        if not entries.coming:
            entries.memory["logits_of_entries"] = logits(entries)
            return None
        counts = entries.counts(self.keep)
        recent = share(counts, self.recent)
        mask = with_room(
            entries.memory["logits_of_entries"],
            entries.candidate,
            self.start,
            counts - recent,
            recent,
            entries.coming + self.room if self.text else 0,
        )
        return Keep(mask)

    def local_values(self, slots: LayerSlots) -> Attend | None:
        """Of a decoded token's attention, what goes to any but the best visual entries brings nothing."""
        if not one_token(slots):
            return None
        queries = given(slots.queries, self.name, "queries_keys_values")
        keys = given(slots.keys, self.name, "queries_keys_values")
        there = keys.new_ones(len(keys), keys.shape[2], dtype=torch.bool) if slots.valid is None else slots.valid
        attention = wanted(queries[:, :, 0], keys, slots.scale, there, "group")
        visual = slots.visual_entries.expand_as(attention)
        counts = token_counts(self.values, visual[:, 0].sum(1))
        return Attend((Part(lost=visual & ~best(attention, counts, visual)),))


def slots_of(entries: CacheEntries) -> Tensor:
    """Which slot of the conversation every entry is, (rows, entries), if all heads hold the same ones.

    What earlier calls left is remembered; entries that were there before the method are told apart by their places.
    """
    new = given(entries.slot, "spatten", "slot")
    known = entries.memory.get("slot_of_entries")
    past = entries.valid.shape[1] - new.shape[1]
    if known is None:
        known = torch.arange(past, device=new.device).expand(len(new), -1)[:, None]
    slot = torch.cat((known[:, 0, :past], new), 1)
    entries.memory["slot_of_entries"] = slot[:, None].expand_as(entries.candidate)
    return slot


def accumulated(entries: CacheEntries, slot: Tensor) -> Tensor:
    """Add what entries received in this layer to what they received before, and remember it.

    Returns:
        float32, (rows, entries), summed over all heads, queries, layers and calls until here.
    """
    before = entries.across.get("importance")
    if before is None:
        before = torch.zeros(len(slot), 0, device=slot.device)
    before = F.pad(before.to(slot.device), (0, entries.fed - before.shape[1]))
    if not entries.layer:  # tokens that were taken back may have stood in the place of new ones
        before = before.scatter(1, given(entries.slot, "spatten", "slot"), 0.0)
    total = before.scatter_add(1, slot, received(entries).sum(1).masked_fill(~entries.valid, 0))
    entries.across["importance"] = total
    return total.gather(1, slot)


def logits(entries: CacheEntries) -> Tensor:
    """What entries get from all queries that are shown before mask and softmax: float32, (rows, kv_heads, entries)."""
    asked = (entries.queries.float() * counted(entries)[:, None, :, None]).sum(2)
    asked = asked.unflatten(1, (entries.keys.shape[1], -1)).sum(2).to(entries.keys.device)
    return torch.einsum("rhd,rhkd->rhk", asked * entries.scale, entries.keys.float())


def with_room(score: Tensor, candidate: Tensor, start: int, important: Tensor, recent: Tensor, coming: int) -> Tensor:
    """Mark what stays before so many more entries come: the first, the best, and those recent ones that leave room.

    Where all of them have room beside what comes, everything stays.

    Args:
        score: (rows, kv_heads, entries).
        candidate: bool, (rows, kv_heads, entries).
        start: Number of first candidates that stay.
        important: (rows,), how many of those between first and recent ones stay.
        recent: (rows,), number of the most recent candidates that stay, with those that come.
        coming: How many more will come.
    """
    total = candidate.sum(2)
    first = candidate & (candidate.long().cumsum(2) <= start)
    last = newest(candidate, (recent - coming).clamp_min(0)) & ~first
    mask = first | last | best(score, important, candidate & ~first & ~last)
    fits = total + coming <= start + (important + recent)[:, None]
    return torch.where(fits[..., None], candidate, mask)
