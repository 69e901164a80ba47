"""Compaction of rows that keep different numbers of slots."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.kernels._shared import check_shape


def compact_index_reference(keep: Tensor) -> tuple[Tensor, Tensor | None]:
    """Index of the kept slots of every row, in order, padded on the left to the longest row.

    Reads the counts on the host once: the width of the result depends on them.

    Args:
        keep: bool, (rows, slots).

    Returns:
        index (rows, longest) int64, 0 on padding; and valid (rows, longest) bool, False on padding, or None where all
        rows keep equally many.
    """
    check_shape("keep", keep, "rows", "slots")
    rows, slots = keep.shape
    seen = keep.cumsum(1)
    counts = seen[:, -1] if slots else keep.sum(1)
    on_host = counts.tolist()
    longest = max(on_host, default=0)
    padding = longest - counts
    # Every kept slot is written to its own place; all dropped ones go to one spare column that is cut off.
    place = torch.where(keep, padding.unsqueeze(1) + seen - 1, longest)
    index = torch.zeros((rows, longest + 1), dtype=torch.int64, device=keep.device)
    index = index.scatter_(1, place, torch.arange(slots, device=keep.device).expand(rows, -1))[:, :longest]
    if min(on_host, default=0) == longest:
        return index, None
    return index, torch.arange(longest, device=keep.device) >= padding.unsqueeze(1)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of `x` by index: (rows, slots, ...) and (rows, n) -> (rows, n, ...), on the device of `x`."""
    rows, slots = x.shape[:2]
    index = index.to(x.device)
    flat = (index + torch.arange(rows, device=index.device).unsqueeze(1) * slots).flatten()
    return x.flatten(0, 1).index_select(0, flat).unflatten(0, (rows, index.shape[1]))


compact_index = compact_index_reference
