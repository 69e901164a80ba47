"""What methods at the cache have in common: the attention that entries received, without a matrix of all by all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vtprune.kernels import compact_index, gather_rows
from vtprune.methods._select import top_k_mask
from vtprune.methods.base import CacheEntries

BLOCK = 128  # queries that are looked at together


def age(valid: Tensor) -> Tensor:
    """How many valid ones stand behind each: bool (..., n) -> (..., n), the last valid one has 0."""
    return valid.long().flip(-1).cumsum(-1).flip(-1) - valid.long()


def counted(entries: CacheEntries) -> Tensor:
    """Which queries count, bool (rows, n)."""
    if entries.query_valid is None:
        return torch.ones_like(entries.query_at, dtype=torch.bool)
    return entries.query_valid


def latest(entries: CacheEntries, count: int) -> CacheEntries:
    """The same entries, shown with the last `count` queries only."""
    valid = counted(entries)
    if valid.shape[1] <= count:
        return entries
    return _asked_by(entries, valid & (age(valid) < count))


def behind_pictures(entries: CacheEntries) -> CacheEntries:
    """The same entries, shown with the queries of the text behind the last picture, and always with the last query."""
    visual, valid = entries.picture >= 0, counted(entries)
    last = torch.where(visual, torch.arange(visual.shape[1], device=visual.device), -1).amax(1, keepdim=True)
    return _asked_by(entries, valid & ((entries.query_at > last) | (age(valid) == 0)))


def _asked_by(entries: CacheEntries, chosen: Tensor) -> CacheEntries:
    """The same entries, shown with some of the queries only, bool (rows, n)."""
    index, kept = compact_index(chosen)
    queries = gather_rows(entries.queries.transpose(1, 2), index).transpose(1, 2)
    return dataclasses.replace(entries, queries=queries, query_at=entries.query_at.gather(1, index), query_valid=kept)


def blocks(
    entries: CacheEntries, adjust: Callable[[Tensor, slice], Tensor] | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Attention of the queries, block by block: which they are, and (rows, kv_heads, group, queries, entries), float32.

    Args:
        entries: What a stage is shown.
        adjust: Changes the scaled logits before the softmax, given the block's queries.
    """
    keys = entries.keys.float()
    heads = keys.shape[1]
    positions = torch.arange(keys.shape[2], device=keys.device)
    for start in range(0, entries.queries.shape[2], BLOCK):
        here = slice(start, start + BLOCK)
        queries = entries.queries[:, :, here].float().unflatten(1, (heads, -1)).to(keys.device)
        logits = torch.einsum("rhgqd,rhkd->rhgqk", queries * entries.scale, keys)
        seen = (positions <= entries.query_at[:, here, None]) & entries.valid[:, None]
        if adjust is not None:
            logits = adjust(logits, here)
        hidden = ~seen[:, None, None]
        yield here, logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(hidden, 0)


def received(
    entries: CacheEntries,
    weights: Tensor | None = None,
    adjust: Callable[[Tensor, slice], Tensor] | None = None,
) -> Tensor:
    """Attention that entries received from the queries, summed over these and a group's heads.

    Args:
        entries: What a stage is shown.
        weights: (rows, n), of the queries; all 1 if None.
        adjust: See `blocks`.

    Returns:
        float32, (rows, kv_heads, entries).
    """
    weights = counted(entries).float() * (1.0 if weights is None else weights)
    total = entries.keys.new_zeros(entries.keys.shape[:3], dtype=torch.float32)
    for here, attention in blocks(entries, adjust):
        total += torch.einsum("rhgqk,rq->rhk", attention, weights[:, here].to(attention.device))
    return total


def seen_by(entries: CacheEntries) -> Tensor:
    """(rows, entries): how many of the queries see each entry."""
    here = torch.zeros(entries.keys.shape[0], entries.keys.shape[2], device=entries.keys.device)
    here = here.scatter_add(1, entries.query_at, counted(entries).float())
    return here.flip(1).cumsum(1).flip(1)


def best(scores: Tensor, counts: Tensor, among: Tensor) -> Tensor:
    """Mark the highest scores of every head: of equal ones the earlier.

    Args:
        scores: (rows, kv_heads, entries).
        counts: (rows,), how many to mark in each head.
        among: bool, (rows, kv_heads, entries), what may be marked.
    """
    heads = scores.shape[1]
    chosen = top_k_mask(scores.flatten(0, 1), counts.repeat_interleave(heads), among.flatten(0, 1))
    return chosen.unflatten(0, (-1, heads))


def share(counts: Tensor, part: float) -> Tensor:
    """So much of each count, rounded down."""
    return (counts * part + 1e-3).long()


def newest(candidate: Tensor, counts: Tensor) -> Tensor:
    """Mark the last `counts` (rows,) candidates of every head, (rows, kv_heads, entries)."""
    return candidate & (age(candidate) < counts[:, None, None])


def window_sums(scores: Tensor, picture: Tensor, radius: int) -> Iterator[Tensor]:
    """Scores (rows, kv_heads, entries) of neighbours of the same picture, from `radius` before to as many behind.

    What is beyond the picture, (rows, entries), counts as 0.
    """
    length = scores.shape[2]
    for shift in range(-radius, radius + 1):
        if abs(shift) >= length:
            continue
        moved = torch.zeros_like(scores)
        source, target = slice(max(shift, 0), length + min(shift, 0)), slice(max(-shift, 0), length - max(shift, 0))
        same = picture[:, target] == picture[:, source]
        moved[:, :, target] = scores[:, :, source] * same[:, None]
        yield moved
