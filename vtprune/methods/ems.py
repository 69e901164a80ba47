"""Evicts the useless entries of the cache first, then merges the middling ones into those that stay.

Every head ranks the visual entries by what the last tokens of the prompt attend to and by what all of its queries
attend to, whichever is more. The best stay; as many again are merged, each into the one that stays whose key is most
alike, or leave if none is alike enough; what is below leaves before anything is merged, so that noise is not averaged.

Paper: "EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression Based on Global-Local Importance",
arXiv 2412.08521. Authors' code: none found; what the abstract leaves open is our choice, and a parameter. The rule
`weights="likeness"` is that of MergingPress in github.com/NVIDIA/kvpress.
Differs from the paper in: only visual entries leave, unless `text=True`; entries merge within a picture only; by
default the queries of the text behind the last picture decide, all of which see all of it; values are averaged, keys
only on demand, since those of different positions are turned differently (`merge_keys`); likeness is measured on turned
keys; it acts once, after the prompt; all heads have the same budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtprune.budget import LayerBudget
from vtprune.kernels import compact_index, gather_rows, merge_by_owner
from vtprune.kernels._shared import first_argmax, full_precision
from vtprune.methods._entries import BLOCK, behind_pictures, best, received, seen_by, share
from vtprune.methods._select import check_choice, check_number, check_whole_numbers
from vtprune.methods.base import CacheEntries, Keep, Method, ModelInfo, Place, Stage, all_layers
from vtprune.methods.registry import register
from vtprune.methods.snapkv import observed, smoothed

EPS = 1e-6


@register("ems")
@dataclasses.dataclass(frozen=True)
class EMS(Method):
    """One eviction per layer, after the prefill, with merging into what stays.

    The paper's headline, 256 entries per head, is `keep=256, text=True, queries="all"`.
    """

    kind = "cache"
    places = (Place.CACHE,)
    paper = "EMS, arXiv 2412.08521"
    cost = "N T C + (keep N)^2 C per decoder layer; with queries='all' (N + T)^2 C + (keep N)^2 C"
    needs_text = True
    layered = True

    keep: LayerBudget = (
        0.25  # ratio in (0, 1] or entries per picture and head, or a list by layer; with `text`, of the prompt
    )
    considered: float = 2.0  # how many times as many are kept or merged; what ranks below leaves, >= 1
    tau: float = 0.6  # least cosine between keys, in [-1, 1], for an entry to be merged, not dropped
    weights: Literal["score", "likeness"] = "score"  # of what is merged: its score; or likeness and length of values
    merge_keys: bool = False  # whether keys are averaged too
    window: int = 32  # last tokens of the prompt whose attention counts by itself, >= 1
    kernel: int = 5  # odd number of neighbours over which that is smoothed, 1 for none
    queries: Literal["closing", "all"] = "closing"  # whose attention counts beside: text behind the pictures, or all
    text: bool = False  # whether text may leave too; the last `window` tokens then count as kept

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("considered", self.considered, 1, 1e6)
        check_number("tau", self.tau, -1, 1)
        check_choice("weights", self.weights, ("score", "likeness"))
        check_whole_numbers("window", self.window, 1)
        check_whole_numbers("kernel", self.kernel, 1)
        check_choice("queries", self.queries, ("closing", "all"))
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number, got {self.kernel}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One eviction in every layer."""
        signals = frozenset({"all_queries" if self.text else f"{self.queries}_queries"})
        return [Stage(Place.CACHE, self.decide, all_layers(model, self.keep), signals, text=self.text, mixes=True)]

    def decide(self, entries: CacheEntries) -> Keep:
        """Keep the best, merge as many more, and let the rest leave."""
        closing = entries if self.text else behind_pictures(entries)
        local, window = observed(closing, self.window)
        among, counts = entries.candidate, entries.counts(self.keep)
        always, pooled = torch.zeros_like(among), entries.picture
        if self.text:
            always = among & window[:, None]
            counts = (counts - always[:, 0].sum(1)).clamp_min(0)
            pooled = torch.where(window | ~among.any(1), -2, pooled)
            among = among & ~always
        score = combined(smoothed(local, pooled, self.kernel), mean_received(entries), among)
        centre = best(score, counts, among)
        folded = best(score, share(counts, self.considered), among) & ~centre
        target, cosine = nearest(entries.keys, centre, folded, entries.picture)
        by_score = self.weights == "score"
        weight = score if by_score else likeness_weights(entries.values, target, cosine, folded)
        target = torch.where(cosine >= self.tau, target, torch.arange(target.shape[2], device=target.device))
        values = merged(entries.values, target, weight)
        keys = merged(entries.keys, target, weight) if self.merge_keys else None
        return Keep(always | centre, keys=keys, values=values)


def combined(local: Tensor, overall: Tensor, among: Tensor) -> Tensor:
    """The larger of two scores (rows, kv_heads, entries), the second one scaled to the mean of the first in each head.

    Args:
        local: Not negative.
        overall: Not negative.
        among: bool, (rows, kv_heads, entries), over which the means are taken.
    """
    means = [(x * among).sum(2, keepdim=True) for x in (local, overall)]
    return torch.maximum(local, overall * means[0] / means[1].clamp_min(torch.finfo(torch.float32).tiny))


def mean_received(entries: CacheEntries) -> Tensor:
    """Attention that entries received from the queries, by how many of these see them, (rows, kv_heads, entries)."""
    return received(entries) / seen_by(entries).clamp_min(1)[:, None]


def nearest(keys: Tensor, centre: Tensor, folded: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """For every entry that shall be merged, the centre of its picture whose key is most alike, the first of equals.

    Args:
        keys: (rows, kv_heads, entries, head_dim).
        centre: bool, (rows, kv_heads, entries).
        folded: bool, (rows, kv_heads, entries), which entries shall be merged.
        picture: (rows, entries), what belongs together.

    Returns:
        (rows, kv_heads, entries) each: the centre, all other entries themselves; and the cosine, which is minus
        infinity where there is no centre to merge into.
    """
    rows, heads, entries = centre.shape
    unit = normalize(keys.float(), dim=-1).flatten(0, 1)
    of = picture[:, None].expand(-1, heads, -1).flatten(0, 1)
    (to, to_valid), (source, source_valid) = (compact_index(x.flatten(0, 1)) for x in (centre, folded))
    target = torch.arange(entries, device=keys.device).repeat(rows * heads, 1)
    cosine = torch.full(target.shape, -torch.inf, device=keys.device)
    if not to.shape[1] or not source.shape[1]:
        return target.view_as(centre), cosine.view_as(centre)
    centres = gather_rows(unit, to).transpose(1, 2)
    found = []
    for start in range(0, source.shape[1], BLOCK):
        here = source[:, start : start + BLOCK]
        with full_precision(unit):
            alike = gather_rows(unit, here) @ centres
        barred = of.gather(1, here)[:, :, None] != of.gather(1, to)[:, None]
        if to_valid is not None:
            barred = barred | ~to_valid[:, None]
        alike = alike.masked_fill(barred, -torch.inf)
        value, which = first_argmax(alike)
        found.append((torch.where(value.isneginf(), here, to.gather(1, which)), value))
    new, value = (torch.cat(x, 1) for x in zip(*found, strict=True))
    if source_valid is not None:  # what is no entry to be merged goes to a place behind all
        source = torch.where(source_valid, source, entries)
    target = torch.nn.functional.pad(target, (0, 1)).scatter(1, source, new)[:, :entries]
    cosine = torch.nn.functional.pad(cosine, (0, 1)).scatter(1, source, value)[:, :entries]
    return target.view_as(centre), cosine.view_as(centre)


def likeness_weights(values: Tensor, target: Tensor, cosine: Tensor, folded: Tensor) -> Tensor:
    """What entries weigh beside the one that they merge into, which weighs 1: (rows, kv_heads, entries).

    Likeness of keys, if it is above 0, times the share of the entry's value in the length of both values.
    """
    length = values.float().norm(dim=-1)
    weight = cosine.clamp_min(0) * length / (length + length.gather(2, target) + EPS)
    return torch.where(folded, weight, 1.0)


def merged(x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted means of x (rows, kv_heads, entries, channels) where entries merge; all others as they were.

    Args:
        x: Keys or values.
        target: (rows, kv_heads, entries), what each entry becomes part of; itself if it stays alone.
        weight: (rows, kv_heads, entries), not negative.
    """
    rows, heads, entries = target.shape
    owner = target.flatten(0, 1)
    alone = owner == torch.arange(entries, device=owner.device)
    means, sizes = merge_by_owner(x.flatten(0, 1), owner, entries, weight.float().flatten(0, 1))
    members = torch.zeros_like(sizes).scatter_add(1, owner, (~alone).float())
    changed = (members > 0) & (sizes > 0)
    return torch.where(changed[..., None], means, x.flatten(0, 1)).unflatten(0, (rows, heads))
