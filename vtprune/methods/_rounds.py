"""Merging in rounds: tokens at even places join the most similar ones at odd places, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vtprune.kernels import bipartite_matching, gather_rows, merge_by_owner, owner_map


def halvings(tokens: int, count: int) -> list[int]:
    """How many tokens leave in each round, at most half of them, until `count` are left."""
    leaving = []
    while tokens > count:
        leaving.append(min(tokens // 2, tokens - count))
        tokens -= leaving[-1]
    return leaving


class Round(NamedTuple):
    """One round of merging: unmerged even tokens come first, most similar to a neighbour first, then the odd ones.

    Attributes:
        owner: (pictures, tokens before), the token after the round that each becomes part of.
        tokens: Number of tokens after the round.
        source: (pictures, tokens after), the token before the round whose place each takes.
    """

    owner: Tensor
    tokens: int
    source: Tensor


def merge_rounds(metric: Tensor, leaving: Sequence[int]) -> list[Round]:
    """Match even tokens with odd ones by the cosine of metric (pictures, tokens, channels), round by round.

    So many even tokens, at most half of all tokens, become part of the odd token that they are most similar to; a round
    of none leaves all where they are. The metric of a merged token is the plain mean of what it was made of in this
    round.
    """
    rounds = []
    metric = metric.detach().float()
    for merges in leaving:
        tokens = metric.shape[1]
        if merges <= 0 or tokens < 2:
            every = torch.arange(tokens, device=metric.device).expand(len(metric), -1)
            rounds.append(Round(every, tokens, every))
            continue
        matching = bipartite_matching(metric, merges)
        owner, left = owner_map(matching, tokens)
        odd = torch.arange(1, tokens, 2, device=metric.device).expand(len(metric), -1)
        rounds.append(Round(owner, left, torch.cat((2 * matching.unmerged, odd), 1)))
        metric, _ = merge_by_owner(metric, owner, left)
    return rounds


def merge(x: Tensor, rounds: Sequence[Round]) -> list[Tensor]:
    """What features x (pictures, tokens, channels) are after each round: plain means, sizes are not kept."""
    after = []
    for one in rounds:
        x, _ = merge_by_owner(x, one.owner, one.tokens)
        after.append(x)
    return after


def places(rounds: Sequence[Round], tokens: int) -> tuple[Tensor, Tensor]:
    """Where the tokens after the last round were before the first one, and the same for all tokens' owners.

    Returns:
        (pictures, tokens after) and (pictures, tokens), int64.
    """
    first = rounds[0].owner
    where = torch.arange(tokens, device=first.device).expand(len(first), -1)
    group = where
    for one in rounds:
        where = where.gather(1, one.source)
        group = one.owner.gather(1, group)
    return where, gather_rows(where.unsqueeze(-1), group).squeeze(-1)
