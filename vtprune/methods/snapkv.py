"""Keeps in the cache of every layer and head what the end of the prompt attended to, and the neighbours of that.

The prefill sees everything; then each key-value head drops the visual entries to which the last tokens of the prompt
paid least attention. Scores are smoothed along the sequence first, so that what stands around a sought detail stays.

Paper: "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, arXiv 2404.14469. Authors' code:
github.com/FasterDecoding/SnapKV (not read; the formulas are those of its port in github.com/NVIDIA/kvpress).
Differs from the paper in: only visual entries leave, unless `text=True`; the observation window is the text behind the
last picture (the last token where there is none), of which the last `window` tokens count; scores are smoothed within
a picture only; with grouped queries the heads of a group decide together; padding neither counts nor stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import LayerBudget
from vtprune.methods._entries import age, best, counted, latest, received, window_sums
from vtprune.methods._select import check_choice, check_whole_numbers
from vtprune.methods.base import CacheEntries, Keep, Method, ModelInfo, Place, Stage, all_layers
from vtprune.methods.registry import register


@register("snapkv")
@dataclasses.dataclass(frozen=True)
class SnapKV(Method):
    """One eviction per layer, after the prefill."""

    kind = "cache"
    places = (Place.CACHE,)
    paper = "SnapKV, NeurIPS 2024, arXiv 2404.14469"
    cost = "N T C per decoder layer, for T <= `window` tokens of text"
    needs_text = True
    layered = True

    keep: LayerBudget = (
        0.25  # ratio in (0, 1] or entries per picture and head, or a list by layer; with `text`, of the prompt
    )
    window: int = 64  # last tokens of the prompt whose attention counts, >= 1; the paper's scripts use 16 to 64
    kernel: int = 5  # odd number of neighbours over which scores are smoothed, 1 for none
    pool: Literal["mean", "max"] = "mean"  # how they are smoothed
    text: bool = False  # whether text may leave too; the last `window` tokens then count as kept

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_whole_numbers("window", self.window, 1)
        check_whole_numbers("kernel", self.kernel, 1)
        check_choice("pool", self.pool, ("mean", "max"))
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number, got {self.kernel}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One eviction in every layer."""
        queries = "all_queries" if self.text else "closing_queries"
        layers = all_layers(model, self.keep)
        return [Stage(Place.CACHE, self.decide, layers, frozenset({queries}), text=self.text)]

    def decide(self, entries: CacheEntries) -> Keep:
        """Keep the entries with the highest smoothed scores."""
        scores, window = observed(entries, self.window)
        among, counts = entries.candidate, entries.counts(self.keep)
        always = torch.zeros_like(among)
        pooled = entries.picture
        if self.text:
            always = among & window[:, None]
            counts = (counts - always[:, 0].sum(1)).clamp_min(0)
            pooled = torch.where(window | ~among.any(1), -1, 0)
        scores = smoothed(scores, pooled, self.kernel, self.pool)
        return Keep(always | best(scores, counts, among & ~always))


def observed(entries: CacheEntries, window: int) -> tuple[Tensor, Tensor]:
    """Mean attention that entries received from the last queries, and which entries these are.

    Args:
        entries: What a stage is shown.
        window: How many of the last queries count.

    Returns:
        float32, (rows, kv_heads, entries), the mean over queries and the heads of a group; bool, (rows, entries), the
        last `window` entries of those that are valid.
    """
    last = latest(entries, window)
    heads = last.queries.shape[1] // last.keys.shape[1]
    seen = counted(last).sum(1).clamp_min(1).to(last.keys.device)
    scores = received(last) / (heads * seen[:, None, None])
    return scores, entries.valid & (age(entries.valid) < window)


def smoothed(scores: Tensor, picture: Tensor, kernel: int, pool: Literal["mean", "max"] = "mean") -> Tensor:
    """Scores (rows, kv_heads, entries) pooled over `kernel` neighbours of the same picture; 0 beyond its ends.

    Args:
        scores: Not negative.
        picture: (rows, entries), whose neighbours count together.
        kernel: Odd number of neighbours, the entry itself among them.
        pool: "mean" (over `kernel`, zeros counted) or "max".
    """
    neighbours = torch.stack(list(window_sums(scores, picture, kernel // 2)))
    return neighbours.sum(0) / kernel if pool == "mean" else neighbours.amax(0)
