"""`ragged_compact` on GPUs: one launch for the index, one for each tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune.kernels.ragged_compact import Compacted, Fill

INDEX_BLOCK = 1024
TILE = 2048


@triton.jit
def index_kernel(keep, index, valid, keep_row, keep_slot, slots, width, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """Index of one row's kept slots, aligned at the end."""
    row = tl.program_id(0).to(tl.int64)
    keep += row * keep_row
    index += row * width
    valid += row * width
    offsets = tl.arange(0, BLOCK)
    count = 0
    for start in range(0, slots, BLOCK):
        slot = start + offsets
        kept = tl.load(keep + slot.to(tl.int64) * keep_slot, mask=slot < slots, other=0)
        count += tl.sum((kept != 0).to(tl.int32))
    place = width - count
    for start in range(0, width, BLOCK):
        slot = start + offsets
        # Without padding there is nothing to write, unless the caller erred; no index is ever out of range.
        tl.store(index + slot, tl.zeros((BLOCK,), tl.int64), mask=(slot < place) & (slot < width))
        if PADDED:
            tl.store(valid + slot, (slot >= place).to(tl.uint8), mask=slot < width)
    for start in range(0, slots, BLOCK):
        slot = start + offsets
        kept = (tl.load(keep + slot.to(tl.int64) * keep_slot, mask=slot < slots, other=0) != 0).to(tl.int32)
        target = place + tl.cumsum(kept) - 1
        tl.store(index + target, slot.to(tl.int64), mask=(kept != 0) & (target >= 0) & (target < width))
        place += tl.sum(kept)


@triton.jit
def gather_kernel(
    x,
    index,
    valid,
    out,
    fill,
    x_row,
    x_slot,
    x_channel,
    width,
    channels,
    FILL: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A tile of slots and channels of one row."""
    row = tl.program_id(1).to(tl.int64)
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (slot < width)[:, None] & (channel < channels)[None, :]
    place = row * width + slot
    source = tl.load(index + place, mask=slot < width, other=0)
    value = tl.load(x + row * x_row + source[:, None] * x_slot + channel.to(tl.int64)[None, :] * x_channel, mask=inside)
    if FILL:
        real = tl.load(valid + place, mask=slot < width, other=0) != 0
        value = tl.where(real[:, None], value, fill)
    target = out + place[:, None] * channels + channel[None, :]
    tl.store(target, value.to(out.dtype.element_ty), mask=inside)


def ragged_compact_triton(
    keep: Tensor,
    tensors: Sequence[Tensor],
    *,
    fills: Sequence[Fill] | None = None,
    width: int | None = None,
    padded: bool | None = None,
) -> Compacted:
    """`ragged_compact` by Triton kernels."""
    rows, slots = keep.shape
    if width is None or padded is None:
        lengths = keep.sum(1).tolist()
        width = max(lengths) if width is None else width
        padded = min(lengths) < width if padded is None else padded
    index = torch.empty((rows, width), dtype=torch.int64, device=keep.device)
    valid = torch.empty((rows, width), dtype=torch.bool, device=keep.device) if padded else None
    if width == 0:
        empty = [x.new_empty((rows, 0, *x.shape[2:])) for x in tensors]
        return index, valid, empty
    marks = index if valid is None else valid.view(torch.uint8)
    with torch.cuda.device(keep.device if keep.is_cuda else -1):
        index_kernel[(rows,)](
            keep.view(torch.uint8),
            index,
            marks,
            *keep.stride(),
            slots,
            width,
            PADDED=padded,
            BLOCK=min(INDEX_BLOCK, triton.next_power_of_2(slots)),
            num_warps=4,
        )
        gathered = [
            _gather(x, index, marks, None if fills is None or not padded else fills[i]) for i, x in enumerate(tensors)
        ]
    return index, valid, gathered


def _gather(x: Tensor, index: Tensor, marks: Tensor, fill: Fill) -> Tensor:
    rows, width = index.shape
    out = torch.empty((rows, width, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    source = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    target = out
    if x.dtype == torch.bool:
        source, target, fill = source.view(torch.uint8), out.view(torch.uint8), None if fill is None else int(fill)
    channels = source.shape[2]
    block = min(triton.next_power_of_2(channels), TILE)
    tile = min(TILE // block, triton.next_power_of_2(width))
    gather_kernel[(triton.cdiv(width, tile), rows, triton.cdiv(channels, block))](
        source,
        index,
        marks,
        target,
        0 if fill is None else fill,
        *source.stride(),
        width,
        channels,
        FILL=fill is not None,
        SLOTS=tile,
        CHANNELS=block,
        num_warps=4,
    )
    return out
