"""A few queries that stand for all of them: the most recent ones, and random ones before these."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from vtprune.kernels import gather_rows
from vtprune.methods._entries import age, counted, received, seen_by
from vtprune.methods.base import CacheEntries

Amount = float | int


def probe_rows(valid: Tensor, recent: Amount, random: Amount, seed: int) -> tuple[Tensor, Tensor]:
    """Choose queries, by no state but the seed: as many numbers of the same random row in every row and layer.

    Args:
        valid: bool, (rows, n), which queries there are.
        recent: How many of the last ones, a share of a row's, rounded up, or a number.
        random: How many of those before, a share, rounded down, or a number; the same one may be drawn again, and then
            counts twice. Of numbers, all queries are taken where there are no more than `recent + random`.
        seed: Of the draw.

    Returns:
        index: (rows, chosen), which ones.
        counted: bool, (rows, chosen), False on padding.
    """
    n, count = valid.shape[1], valid.sum(1, keepdim=True)
    if isinstance(recent, float):
        first = (count - recent * count + 1e-3).floor().long()
        most_recent = math.ceil(recent * n)
    else:
        first = (count - recent).where(count > recent + random, 0).clamp_min(0)
        most_recent = min(n, recent + int(random))
    drawn = (random * count + 1e-3).floor().long() if isinstance(random, float) else torch.full_like(count, random)
    most_random = math.floor(random * n + 1e-3) if isinstance(random, float) else random
    # Places among the valid ones, of which these are the indices.
    place = (~valid).long().argsort(dim=1, stable=True)
    last = count - 1 - torch.arange(most_recent, device=valid.device)
    numbers = torch.rand(most_random, generator=torch.Generator().manual_seed(seed)).to(valid.device)
    anywhere = (numbers * first).long().minimum((first - 1).clamp_min(0))
    there = torch.cat((last >= first, (torch.arange(most_random, device=valid.device) < drawn) & (first > 0)), 1)
    return place.gather(1, torch.cat((last.clamp_min(0), anywhere), 1)), there


def shown_by(entries: CacheEntries, index: Tensor, there: Tensor) -> CacheEntries:
    """The same entries, shown with these of the queries only."""
    queries = gather_rows(entries.queries.transpose(1, 2), index.to(entries.queries.device)).transpose(1, 2)
    at = entries.query_at.gather(1, index.to(entries.query_at.device))
    return dataclasses.replace(entries, queries=queries, query_at=at, query_valid=there)


def mean_received(entries: CacheEntries) -> Tensor:
    """What entries received on average from the queries that see them: float32, (rows, kv_heads, entries)."""
    return received(entries) / seen_by(entries).clamp_min(1)[:, None]


def behind_first(entries: CacheEntries) -> Tensor:
    """Which queries stand behind the first candidate of their row, bool (rows, n)."""
    begun = entries.candidate.any(1).long().cumsum(1) > 0
    return counted(entries) & begun.gather(1, entries.query_at)


def last_valid(entries: CacheEntries) -> Tensor:
    """Bool (rows, entries), the last entry of every row."""
    return entries.valid & (age(entries.valid) == 0)
