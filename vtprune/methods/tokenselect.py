"""Lets a decoded token read only the visual entries for which all heads of the layer together vote.

Each head spreads one vote over the visual entries, by softmax; entries with the most votes are read by all heads, and
so is all text. As long as the query hardly turns, the last choice is used again. Nothing leaves the cache.

With dense kernels this saves bytes read while decoding, and neither memory nor anything in the prefill: a choice reads
all keys, so that a step that chooses saves about half, one that reuses a choice nearly all of what is not read. On one
CPU core, choosing 128 of 576 entries takes longer than reading all of them; it pays from one or two thousand on.

Paper: "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic Token-Level KV
Cache Selection", EMNLP 2025, arXiv 2411.02886. Authors' code: github.com/pzs19/TokenSelect.
Differs from the paper in: visual entries are chosen from, and text is always read; votes are cast by rotated queries on
rotated keys at the positions that these have (the paper's are not rotated, and it makes positions dense among what is
read, to reach beyond the trained length; `published_query` is its query); prompts read everything; a reused choice is
compared with the query that made it, row by row. The authors' code has reuse switched off (`reuse=None`), and lets
query head h read the keys of head h mod kv_heads (`heads="modulo"`), which is another head than its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.compat import rotate
from vtprune.methods._entries import age
from vtprune.methods._reads import forget, held, one_token, reading, wanted
from vtprune.methods._select import check_choice, check_number, check_whole_numbers, given
from vtprune.methods._strongest import index_of, strongest
from vtprune.methods.base import Attend, LayerSlots, Method, ModelInfo, Place, Stage
from vtprune.methods.registry import register

Heads = Literal["grouped", "modulo"]


@register("tokenselect")
@dataclasses.dataclass(frozen=True)
class TokenSelect(Method):
    """Token by token, in every layer, one choice for all heads.

    The paper's settings: `keep=2048 + 128 + 512, first=128, last=512` for contexts of 100,000 tokens and more.
    """

    kind = "sparse"
    places = (Place.ATTENTION,)
    paper = "TokenSelect, EMNLP 2025, arXiv 2411.02886"
    cost = "N C per decoder layer and decoded token that chooses"

    keep: Budget = 0.25  # ratio in (0, 1] of a row's visual entries, or how many, that a decoded token reads
    first: int = 0  # of these, how many are the first visual entries in any case, >= 0
    last: int = 0  # and how many the last ones, >= 0
    kernel: int = 1  # odd number of neighbours of which the most votes count, 1 for none
    reuse: float | None = 0.9  # cosine of the layer's queries from which on a choice is used again; None: never
    scaled: bool = False  # divide logits by sqrt(head_dim) before the vote, so that votes are spread more evenly
    heads: Heads = "grouped"  # whose keys a query head votes on: of its group, or, as in the authors' code, "modulo"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        for name in ("first", "last"):
            check_whole_numbers(name, (getattr(self, name),), 0)
        check_whole_numbers("kernel", (self.kernel,), 1)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number, got {self.kernel}.")
        if self.reuse is not None:
            check_number("reuse", self.reuse, -1, 1)
        check_choice("heads", self.heads, ("grouped", "modulo"))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One choice in every layer."""
        layers, asked = tuple(range(model.decoder_layers)), frozenset({"queries_keys_values"})
        return [Stage(Place.ATTENTION, self.decide, layers, asked, decodes=True, alike="heads")]

    def decide(self, slots: LayerSlots) -> Attend | None:
        """Read what has most votes, or what had them."""
        if not one_token(slots):
            forget(slots)
            return None
        now = held(slots, self.name)
        counts = now.counts(self.keep)
        if counts == now.visual:
            return None
        queries = given(slots.queries, self.name, "queries_keys_values")[:, :, 0]
        keys = given(slots.keys, self.name, "queries_keys_values")
        chosen, asked = slots.held.get("chosen"), slots.held.get("asked")
        old: Tensor | None = None
        if chosen is not None and asked is not None and self.reuse is not None:
            old = alike(queries, asked, self.reuse)
            if bool(old.all()):
                return reading(slots, now, chosen, counts)
        candidate = slots.visual_entries[:, 0]
        scale = slots.scale if self.scaled else 1.0
        limits = torch.tensor(counts, device=keys.device)
        votes = cast(queries, keys, scale, middle(candidate, self.first, self.last), self.heads)
        mask = elected(votes, candidate, limits, max(counts), self.first, self.last, self.kernel)
        index, valid = index_of(mask, max(counts))
        found = torch.where(valid, index, -1)[:, None]
        if chosen is not None and asked is not None and old is not None:
            found = torch.where(old[:, None, None], chosen, found)
            queries = torch.where(old[:, None, None], asked, queries)
        slots.held.update(chosen=found, asked=queries)
        return reading(slots, now, found, counts)


def alike(queries: Tensor, asked: Tensor, least: float) -> Tensor:
    """Bool (rows,), whether queries (rows, heads, dim) point where those asked before did, all heads taken together."""
    return torch.cosine_similarity(queries.flatten(1).float(), asked.flatten(1).float(), dim=1) >= least


def middle(candidate: Tensor, first: int, last: int) -> Tensor:
    """The candidates, bool (rows, entries), without the first and the last ones of each row."""
    return candidate & (candidate.long().cumsum(1) > first) & (age(candidate) >= last)


def cast(queries: Tensor, keys: Tensor, scale: float, among: Tensor, heads: Heads = "grouped") -> Tensor:
    """Votes for entries, (rows, entries), float32; each head has one, which it spreads by softmax.

    Args:
        queries: (rows, heads, dim).
        keys: (rows, kv_heads, entries, dim).
        scale: Factor on their products.
        among: Bool, (rows, entries), what is voted on.
        heads: "grouped", or "modulo": query head h votes on the keys of head h mod kv_heads.
    """
    if heads == "modulo":
        queries = queries.unflatten(1, (-1, keys.shape[1])).transpose(1, 2).flatten(1, 2)
    return wanted(queries, keys, scale, among, "layer")[:, 0]


def elected(
    votes: Tensor, candidate: Tensor, counts: Tensor, most: int, first: int = 0, last: int = 0, kernel: int = 1
) -> Tensor:
    """Which of the candidates are read, bool (rows, entries): the first and last ones, and those with most votes.

    Args:
        votes: (rows, entries), none negative, and none for what is not in the middle.
        candidate: Bool, (rows, entries).
        counts: (rows,), how many are read.
        most: The largest of these, known to the host.
        first: How many of them are a row's first candidates.
        last: How many are its last ones; where `counts` is smaller than both together, the last ones go first.
        kernel: Odd number of neighbours of which the most votes count.
    """
    if kernel > 1:
        votes = torch.nn.functional.max_pool1d(votes[:, None], kernel, 1, kernel // 2)[:, 0]
    among = middle(candidate, first, last)
    ends = candidate & ~among
    ends = ends & (ends.long().cumsum(1) <= counts[:, None])
    return ends | strongest(votes, counts - ends.sum(1), among, most)


def published_query(queries: Tensor, first: int, base: float) -> Tensor:
    """The paper's query: the mean of those of a chunk, turned as if they stood at `first`, `first` + 1, ...

    Its keys are not turned at all. Here for comparison with the authors' code.

    Args:
        queries: (rows, heads, n, dim), not rotated.
        first: Position of the first one, the paper's number of last entries that are always read.
        base: Of the rotary embedding.

    Returns:
        (rows, heads, dim).
    """
    dim = queries.shape[-1]
    frequencies = base ** -(torch.arange(0, dim, 2, device=queries.device) / dim)
    positions = torch.arange(first, first + queries.shape[2], device=queries.device)
    angles = (positions[:, None] * frequencies).repeat(1, 2)[None]
    return rotate(queries.float(), angles.cos(), angles.sin()).mean(2)
