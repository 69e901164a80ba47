"""Cutting a video into segments such that as many tokens as possible stand still throughout theirs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def alike_next(features: Tensor) -> Tensor:
    """Cosine of every token with the one at its place a frame later; features (videos, frames, tokens, channels)."""
    unit = F.normalize(features.detach().float(), dim=-1, eps=1e-8)
    return (unit[:, 1:] * unit[:, :-1]).sum(-1)


def still_since(likeness: Tensor, tau: float) -> Tensor:
    """The first frame from which on each token has been like the one a frame before.

    Args:
        likeness: (videos, frames - 1, tokens), of the tokens at one place in frames that follow one another.
        tau: Above which they are alike.

    Returns:
        (videos, frames, tokens) int64.
    """
    videos, steps, tokens = likeness.shape
    frame = torch.arange(1, steps + 1, device=likeness.device)[:, None]
    since = torch.where(likeness > tau, 0, frame).cummax(1).values
    return torch.cat((since.new_zeros(videos, 1, tokens), since), 1)


def still_counts(since: Tensor) -> Tensor:
    """How many tokens stand still from frame a to frame b, (videos, b, a)."""
    videos, frames = since.shape[:2]
    counts = since.new_zeros(videos, frames, frames)
    return counts.scatter_add_(2, since, torch.ones_like(since)).cumsum(2)


class Plan(NamedTuple):
    """Segments of one video, and how many tokens stay.

    Attributes:
        segments: First and last frame of each.
        saved: Number of tokens that averaging over time saves.
        share: Of the tokens that are left then, the share that stays.
        table: (6, frames) int64, for every frame: the first and the last frame of its segment; how many of its moving
            tokens stay as they are, and how many as centres of others; how many centres there are of what stands
            still, which the first frame of a segment has; how many of its tokens move.
    """

    segments: list[tuple[int, int]]
    saved: int
    share: float
    table: np.ndarray


def plan_video(counts: np.ndarray, tokens: int, share: float, contextual: float = 0.0, window: int = 1024) -> Plan:
    """Cut a video, and share out its tokens.

    Args:
        counts: (b, a), how many tokens stand still from frame a to frame b.
        tokens: Per frame.
        share: Of all tokens that stay, in (0, 1].
        contextual: Share of a frame's moving tokens that stay as centres of others, in [0, 1].
        window: The longest segment, in frames.
    """
    frames = len(counts)
    segments, saved = best_segments(counts, window)
    share = min(share / ((frames * tokens - saved) / (frames * tokens)), 1.0)
    table = np.zeros((6, frames), dtype=np.int64)
    for first, last in segments:
        still = int(counts[last, first]) if last > first else 0
        staying = math.ceil((tokens - still) * share)
        alone = round(staying * (1 - contextual))
        table[:, first : last + 1] = np.array([[first, last, alone, staying - alone, 0, tokens - still]]).T
        table[4, first] = round(still * share)
    if not table[2:5].any():  # everything stands still, and so little may stay that nothing would
        table[4, 0] = 1
    return Plan(segments, saved, share, table)


def best_segments(counts: np.ndarray, window: int) -> tuple[list[tuple[int, int]], int]:
    """The segments that save most tokens, and how many; of equally good ones the shorter last segment.

    A segment saves each of its still tokens in all of its frames but one.
    """
    frames = len(counts)
    best = np.zeros(frames + 1, dtype=np.int64)  # of the first so many frames
    begins = np.arange(frames)  # of the last segment, if the video ended here
    for last in range(frames):
        best[last + 1] = best[last]
        firsts = np.arange(last - 1, max(last - window, -1), -1)
        if len(firsts):
            saved = best[firsts] + (last - firsts) * counts[last, firsts]
            choice = saved.argmax()
            if saved[choice] > best[last]:
                best[last + 1], begins[last] = saved[choice], firsts[choice]
    segments, last = [], frames - 1
    while last >= 0:
        segments.append((int(begins[last]), last))
        last = int(begins[last]) - 1
    return segments[::-1], int(best[-1])
