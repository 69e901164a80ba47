"""The strongest entries of long rows, of a known number: one partial selection instead of sorting everything."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.kernels import compact_index


def strongest(scores: Tensor, counts: Tensor, among: Tensor, most: int) -> Tensor:
    """Mark the highest scores of every row; of equal ones the earlier. NaN ranks below every number.

    Args:
        scores: (..., n).
        counts: (...) or broadcastable to it, how many to mark; never more than may be marked.
        among: Bool, broadcastable to `scores`, what may be marked.
        most: The largest count, known to the host, so that nothing waits for the device.

    Returns:
        Bool, like `scores`.
    """
    most = min(most, scores.shape[-1])
    if most == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    low = torch.finfo(torch.float32).min
    # Minus infinity is for what may not be marked: everything else has to stand above it.
    scores = scores.detach().float().nan_to_num(nan=low, neginf=low).masked_fill(~among, -torch.inf)
    wanted = torch.minimum(counts, among.sum(-1)).expand(scores.shape[:-1]).unsqueeze(-1)
    last = scores.topk(most, dim=-1).values.gather(-1, (wanted - 1).clamp_min(0))
    above, level = scores > last, scores == last
    room = wanted - above.sum(-1, keepdim=True)
    return (above | (level & (level.cumsum(-1) <= room))) & (wanted > 0)


def index_of(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Where what is marked stands, ascending, padded in front: (..., most) int64 and bool, False on padding."""
    index, valid = compact_index(mask.flatten(0, -2), width=most, padded=True)
    shape = (*mask.shape[:-1], most)
    there = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    return index.view(shape), there.view(shape)
