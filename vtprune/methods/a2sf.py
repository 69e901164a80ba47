"""Keeps in the cache of every layer and head what has received most attention lately.

Attention is summed over queries as in h2o, but what a query gave is forgotten step by step: the last query counts in
full, the one before it by a factor, and so on. So entries that stand first, and are seen by more queries, have no
advantage.

Paper: "A2SF: Accumulative Attention Scoring with Forgetting Factor for Token Pruning in Transformer Decoder",
arXiv 2407.20485. Authors' code: github.com/Dirac-Notation/A2SF.
Differs from the paper in: only visual entries leave, unless `text=True`; queries whose weight is below 1e-6 are left
out; padding neither counts nor stays; with grouped queries the heads of a group decide together (as in the authors'
later code, which evicts after the prompt only; the paper goes on at every step: `decodes=True`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from vtprune.budget import LayerBudget
from vtprune.methods._entries import age, counted, latest, share
from vtprune.methods._select import check_number
from vtprune.methods.base import CacheEntries, Keep, Method, ModelInfo, Place, Stage, all_layers
from vtprune.methods.h2o import accumulated, heavy_and_recent
from vtprune.methods.registry import register

FORGOTTEN = 1e-6  # weight below which a query does not count


@register("a2sf")
@dataclasses.dataclass(frozen=True)
class A2SF(Method):
    """One eviction per layer after the prefill; with `decodes=True` one per decoded token after that.

    The authors' setting: `keep=256, recent=0.0625, text=True` (16 recent ones); the paper's has `decodes=True`, too.
    """

    kind = "cache"
    places = (Place.CACHE,)
    paper = "A2SF, arXiv 2407.20485"
    cost = "N (log(1e-6) / log(forgetting)) C per decoder layer"
    needs_text = True
    layered = True

    keep: LayerBudget = (
        0.25  # ratio in (0, 1] or entries per picture and head, or a list by layer; with `text`, of the prompt
    )
    forgetting: float = 0.95  # in (0, 1], weight of a query relative to the next one; 1 forgets nothing
    recent: float = 0.0  # share in [0, 1] of what is kept that is left to the most recent ones, rounded down
    text: bool = False  # whether text may leave too
    decodes: bool = False  # with `text`: whether entries leave at every step, not only after the prompt

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("forgetting", self.forgetting, 0, 1, above_low=True)
        check_number("recent", self.recent, 0, 1)
        if self.decodes and not self.text:
            raise ValueError("decodes=True needs text=True: a decoded token adds no visual entry that could leave.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One eviction in every layer."""
        signals, layers = frozenset({"all_queries"}), all_layers(model, self.keep)
        return [Stage(Place.CACHE, self.decide, layers, signals, text=self.text, decodes=self.decodes)]

    def decide(self, entries: CacheEntries) -> Keep:
        """Let what was received fade, add what the queries give, and keep the best and the most recent entries."""
        score = faded(entries, self.forgetting)
        counts = entries.counts(self.keep)
        recent = share(counts, self.recent)
        return Keep(heavy_and_recent(score, entries.candidate, counts - recent, recent))


def faded(entries: CacheEntries, forgetting: float) -> torch.Tensor:
    """Attention received, (rows, kv_heads, entries), in which each query weighs `forgetting` times the next one.

    Earlier calls on the same cache count on, and fade by as many steps as this one has queries.
    """
    steps = counted(entries).sum(1)
    if forgetting < 1:
        entries = latest(entries, max(1, math.ceil(math.log(FORGOTTEN) / math.log(forgetting))))
    weights = torch.pow(forgetting, age(counted(entries)).float())
    decay = torch.pow(forgetting, steps.float()).to(entries.keys.device)
    return accumulated(entries, decay=decay, weights=weights.to(entries.keys.device))
