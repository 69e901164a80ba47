"""Keeps in the cache of every layer and head the entries that have received most attention so far, the heavy hitters.

Attention that an entry receives is summed over queries. Visual entries are judged once, after the prefill; where text
may leave too, the sum goes on with every decoded token, the most recent entries always stay, and the cache never grows.

Paper: "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", NeurIPS 2023, arXiv
2306.14048. Authors' code: github.com/FMInference/H2O (MIT); what it does to batches, grouped queries and padding, which
it does not handle, is ours.
Differs from the paper in: only visual entries leave, unless `text=True`; by default the queries of the text behind the
last picture decide, all of which see all of it (over all queries, sums favour what stands first: `mean=True` divides by
the number of queries that see an entry); with grouped queries the heads of a group decide together; positions are never
made dense.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import LayerBudget
from vtprune.methods._entries import best, newest, received, seen_by, share
from vtprune.methods._select import check_choice, check_number
from vtprune.methods.base import CacheEntries, Keep, Method, ModelInfo, Place, Stage, all_layers
from vtprune.methods.registry import register


@register("h2o")
@dataclasses.dataclass(frozen=True)
class H2O(Method):
    """One eviction per layer after the prefill; with `text=True` one per decoded token after that.

    The paper's setting: `keep=0.2, recent=0.5, queries="all", text=True` (a tenth heavy hitters, a tenth recent ones).
    """

    kind = "cache"
    places = (Place.CACHE,)
    paper = "H2O, NeurIPS 2023, arXiv 2306.14048"
    cost = "N T C per decoder layer; with queries='all' (N + T)^2 C"
    needs_text = True
    layered = True

    keep: LayerBudget = (
        0.2  # ratio in (0, 1] or entries per picture and head, or a list by layer; with `text`, of the prompt
    )
    recent: float = 0.0  # share in [0, 1] of these that is left to the most recent ones, rounded down
    queries: Literal["closing", "all"] = "closing"  # whose attention counts: of the text behind the pictures, or of all
    mean: bool = False  # divide what an entry received by the number of queries that see it
    text: bool = False  # whether text may leave too, at every step

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("recent", self.recent, 0, 1)
        check_choice("queries", self.queries, ("closing", "all"))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One eviction in every layer."""
        signals = frozenset({f"{self.queries}_queries"})
        layers = all_layers(model, self.keep)
        return [Stage(Place.CACHE, self.decide, layers, signals, text=self.text, decodes=self.text)]

    def decide(self, entries: CacheEntries) -> Keep:
        """Add up what was received, and keep the heavy hitters and the most recent entries."""
        score = accumulated(entries)
        if self.mean:
            seen = entries.memory.get("seen_of_entries", torch.zeros_like(score)) + seen_by(entries)[:, None]
            entries.memory["seen_of_entries"] = seen
            score = score / seen.clamp_min(1)
        counts = entries.counts(self.keep)
        recent = share(counts, self.recent)
        return Keep(heavy_and_recent(score, entries.candidate, counts - recent, recent))


def accumulated(
    entries: CacheEntries,
    decay: Tensor | None = None,
    weights: Tensor | None = None,
    adjust: Callable[[Tensor, slice], Tensor] | None = None,
) -> Tensor:
    """Add what entries received from the queries to what they had, and remember it.

    Args:
        entries: What a stage is shown.
        decay: Factor on what they had, (rows,); 1 if None.
        weights: (rows, n), of the queries; all 1 if None.
        adjust: Changes the scaled logits before the softmax, see `blocks`.

    Returns:
        float32, (rows, kv_heads, entries), summed over the heads of a group.
    """
    score = received(entries, weights, adjust)
    before = entries.memory.get("score_of_entries")
    if before is not None:
        score = score + (before if decay is None else before * decay[:, None, None])
    entries.memory["score_of_entries"] = score
    return score


def heavy_and_recent(score: Tensor, candidate: Tensor, heavy: Tensor, recent: Tensor) -> Tensor:
    """Mark the `recent` last candidates of every head, and the `heavy` ones with the highest score among the others.

    Args:
        score: (rows, kv_heads, entries).
        candidate: bool, (rows, kv_heads, entries).
        heavy: (rows,).
        recent: (rows,).
    """
    last = newest(candidate, recent)
    return last | best(score, heavy, candidate & ~last)


def simulated_mask(score: Tensor, heavy: int, recent: int) -> tuple[Tensor, Tensor]:
    """The authors' simulation of a cache, in which entries are hidden and may return, while none leaves.

    Here for comparison with their code: the slot that has just left the recent ones is hidden for one step and keeps
    its score, since the coming token counts as recent already.

    Args:
        score: (heads, entries), accumulated so far.
        heavy: Number of heavy hitters.
        recent: Number of recent entries, the coming one among them; above 0.

    Returns:
        bool, (heads, entries + 1), what the coming token sees, itself at the end; and the scores that remain.
    """
    entries = score.shape[1]
    mask = torch.zeros(len(score), entries + 1, dtype=torch.bool, device=score.device)
    mask[:, max(entries + 1 - recent, 0) :] = True
    among = (torch.arange(entries, device=score.device) < entries - recent).expand_as(score)
    counts = torch.full((1,), heavy, device=score.device)
    mask[:, :entries] |= best(score[None], counts, among[None])[0]
    return mask, score.masked_fill(~mask[:, :entries] & among, 0)
