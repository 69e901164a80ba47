"""Compaction of rows that keep different numbers of slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.kernels._dispatch import runs_on_triton
from vtprune.kernels._shared import check_shape

Fill = float | int | bool | None


# Index, valid, tensors: see `ragged_compact`.
Compacted = tuple[Tensor, Tensor | None, list[Tensor]]


def ragged_compact(
    keep: Tensor,
    tensors: Sequence[Tensor],
    *,
    fills: Sequence[Fill] | None = None,
    width: int | None = None,
    padded: bool | None = None,
) -> Compacted:
    """Take the kept slots of every row out of several tensors, padded on the left to the longest row.

    Reads on the host once how many slots the rows keep, and not at all where `width` and `padded` are given.

    Args:
        keep: bool, (rows, slots).
        tensors: (rows, slots, ...) each, of any types and strides; on the device of `keep`.
        fills: For each tensor what padding holds; None, for one or for all: what stands at the row's slot 0.
        width: Length of the result, at least that of the longest row; None: just that.
        padded: False if every row is known to keep `width` slots: `valid` is then None; True to get `valid` in any
            case; None: None where every row keeps equally many.

    Returns:
        index: (rows, longest) int64, where the remaining slots stood, 0 on padding.
        valid: (rows, longest) bool, False on padding; None where no row has any.
        tensors: (rows, longest, ...) each.

    Raises:
        ValueError: A shape does not fit, `width` is too small (seen on the CPU only: on GPUs rows lose their first
            slots), or padded=False and it is not so (likewise).
    """
    _check(keep, tensors, fills, width, padded)
    if keep.numel() and runs_on_triton("ragged_compact", None, keep, *tensors):
        from vtprune.kernels.ragged_compact_triton import ragged_compact_triton

        return ragged_compact_triton(keep, tensors, fills=fills, width=width, padded=padded)
    return ragged_compact_reference(keep, tensors, fills=fills, width=width, padded=padded)


def compact_index(
    keep: Tensor, *, width: int | None = None, padded: bool | None = None
) -> tuple[Tensor, Tensor | None]:
    """`index` and `valid` of `ragged_compact`, without moving any tensor."""
    index, valid, _ = ragged_compact(keep, (), width=width, padded=padded)
    return index, valid


def ragged_compact_reference(
    keep: Tensor,
    tensors: Sequence[Tensor],
    *,
    fills: Sequence[Fill] | None = None,
    width: int | None = None,
    padded: bool | None = None,
) -> Compacted:
    """`ragged_compact` in torch; on GPUs it reads on the host twice."""
    _check(keep, tensors, fills, width, padded)
    index, valid = compact_index_reference(keep, width=width, padded=padded)
    rows, slots = keep.shape
    flat = (index if rows == 1 else index + _starts(rows, slots, keep.device)).flatten()
    gathered = []
    for i, x in enumerate(tensors):
        out = x.flatten(0, 1).index_select(0, flat).unflatten(0, index.shape)
        fill = None if fills is None else fills[i]
        if fill is not None and valid is not None:
            out.masked_fill_(~valid.view(*valid.shape, *[1] * (x.ndim - 2)), fill)
        gathered.append(out)
    return index, valid, gathered


def compact_index_reference(
    keep: Tensor, *, width: int | None = None, padded: bool | None = None
) -> tuple[Tensor, Tensor | None]:
    """`compact_index` in torch."""
    rows, slots = keep.shape
    flat = keep.flatten().nonzero()[:, 0]
    # One row, the usual case on the CPU, needs no counting.
    counts = None if rows == 1 else keep.sum(1)
    lengths = [len(flat)] if counts is None else counts.tolist()
    longest = max(lengths, default=0)
    if width is None:
        width = longest
    if longest > width or (padded is False and min(lengths, default=0) < width):
        raise ValueError(f"width={width} and padded={padded} do not fit rows that keep {lengths} slots.")
    if min(lengths, default=0) == width:
        index = flat.view(rows, width)
        if rows > 1:
            index = index - _starts(rows, slots, keep.device)
        return index, torch.ones_like(index, dtype=torch.bool) if padded else None
    kept = torch.as_tensor(lengths, device=keep.device) if counts is None else counts
    valid = torch.arange(width, device=keep.device) >= (width - kept).unsqueeze(1)
    index = torch.zeros((rows, width), dtype=torch.int64, device=keep.device)
    return index.masked_scatter_(valid, flat % slots if slots else flat), valid


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of `x` by index: (rows, slots, ...) and (rows, n) -> (rows, n, ...), on the device of `x`."""
    rows, slots = x.shape[:2]
    index = index.to(x.device)
    flat = index if rows == 1 else index + _starts(rows, slots, x.device)
    return x.flatten(0, 1).index_select(0, flat.flatten()).unflatten(0, (rows, index.shape[1]))


def _starts(rows: int, slots: int, device: torch.device) -> Tensor:
    """(rows, 1): where each row begins once all are one."""
    return (torch.arange(rows, device=device) * slots).view(-1, 1)


def _check(
    keep: Tensor, tensors: Sequence[Tensor], fills: Sequence[Fill] | None, width: int | None, padded: bool | None
) -> None:
    check_shape("keep", keep, "rows", "slots")
    if keep.dtype != torch.bool:
        raise ValueError(f"keep must be bool, got {keep.dtype}.")
    for i, x in enumerate(tensors):
        if x.shape[:2] != keep.shape:
            raise ValueError(
                f"tensors[{i}] must begin with the axes {tuple(keep.shape)} of keep, got {tuple(x.shape)}."
            )
    if fills is not None and len(fills) != len(tensors):
        raise ValueError(f"fills must have one value for each of {len(tensors)} tensors, got {len(fills)}.")
    if width is None and padded is False:
        raise ValueError("padded=False needs width, got None.")
    if width is not None and width < 0:
        raise ValueError(f"width must be at least 0, got {width}.")
