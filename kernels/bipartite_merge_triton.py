"""`bipartite_matching` and `merge_by_owner` on GPUs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune.kernels._cosine import NOBODY
from vtprune.kernels._tiles_triton import similarity_tile

TILE = 64
TILE_CHANNELS = 32
MERGE_CHANNELS = 1024


@triton.jit
def nearest_kernel(
    a,
    b,
    live_b,
    likeness,
    partner,
    a_picture,
    a_row,
    b_picture,
    b_row,
    live_picture,
    live_row,
    row_count,
    column_count,
    channels,
    NOBODY: tl.constexpr,
    BARRED: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """For a block of rows of A: the largest similarity to a row of B, and which; the first among equals."""
    picture = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    a += picture * a_picture
    b += picture * b_picture
    best = tl.full((TILE,), float("-inf"), tl.float32)
    chosen = tl.full((TILE,), BARRED, tl.int32)
    for start in range(0, column_count, TILE):
        columns = start + tl.arange(0, TILE)
        tile = similarity_tile(
            a, b, a_row, 1, b_row, 1, rows, columns, row_count, column_count, channels, TILE, TILE, CHANNELS
        )
        allowed = (columns >= BARRED) & (columns < column_count)
        live = tl.load(live_b + picture * live_picture + columns * live_row, mask=allowed, other=0) != 0
        tile = tl.where(live[None, :], tile, NOBODY)
        tile = tl.where(allowed[None, :], tile, float("-inf"))
        value, index = tl.max(tile, 1, return_indices=True)
        chosen = tl.where(value > best, start + index, chosen)
        best = tl.maximum(best, value)
    place = picture * row_count + rows
    tl.store(likeness + place, best, mask=rows < row_count)
    tl.store(partner + place, chosen.to(tl.int64), mask=rows < row_count)


@triton.jit
def merge_kernel(
    x,
    sizes,
    order,
    ends,
    merged,
    merged_sizes,
    x_picture,
    x_row,
    x_channel,
    tokens,
    groups,
    channels,
    TINY: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A block of channels of one group's weighted mean. Its members are added in their order: no atomics."""
    group = tl.program_id(0)
    picture = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    place = picture * groups + group
    end = tl.load(ends + place)
    start = tl.load(ends + place - 1, mask=group > 0, other=0)
    total = tl.zeros((CHANNELS,), tl.float32)
    weight = 0.0
    for i in range(start, end):
        member = tl.load(order + picture * tokens + i)
        size = tl.load(sizes + picture * tokens + member)
        row = x + picture * x_picture + member * x_row
        total += size * tl.load(row + channel * x_channel, mask=inside, other=0.0).to(tl.float32)
        weight += size
    mean = total / tl.maximum(weight, TINY)
    tl.store(merged + place * channels + channel, mean.to(merged.dtype.element_ty), mask=inside)
    tl.store(merged_sizes + place, weight, mask=tl.program_id(1) == 0)


def bipartite_matching_triton(unit: Tensor, live: Tensor, *, barred: int) -> tuple[Tensor, Tensor]:
    """Nearest row of B for every row of A; arguments and results as in `nearest_in_b`."""
    pictures, tokens, channels = unit.shape
    unit, live = unit.contiguous(), live.view(torch.uint8)
    rows, columns = (tokens + 1) // 2, tokens // 2
    likeness = unit.new_empty((pictures, rows))
    partner = torch.empty((pictures, rows), dtype=torch.int64, device=unit.device)
    a, b, live_b = unit[:, ::2], unit[:, 1::2], live[:, 1::2]
    with torch.cuda.device(unit.device if unit.is_cuda else -1):
        nearest_kernel[(triton.cdiv(rows, TILE), pictures)](
            a,
            b,
            live_b,
            likeness,
            partner,
            a.stride(0),
            a.stride(1),
            b.stride(0),
            b.stride(1),
            live_b.stride(0),
            live_b.stride(1),
            rows,
            columns,
            channels,
            NOBODY=NOBODY,
            BARRED=barred,
            TILE=TILE,
            CHANNELS=TILE_CHANNELS,
            num_warps=4,
        )
    return likeness, partner


def merge_by_owner_triton(x: Tensor, owner: Tensor, groups: int, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """`merge_by_owner` by a Triton kernel."""
    pictures, tokens, channels = x.shape
    weights = x.new_ones((pictures, tokens), dtype=torch.float32) if sizes is None else sizes.float().contiguous()
    order = owner.contiguous().argsort(dim=1, stable=True)  # which keeps the strides
    ends = torch.zeros((pictures, groups), dtype=torch.int64, device=x.device)
    ends = ends.scatter_add_(1, owner, torch.ones_like(owner)).cumsum(1)
    merged = torch.empty((pictures, groups, channels), dtype=x.dtype, device=x.device)
    merged_sizes = torch.empty((pictures, groups), dtype=torch.float32, device=x.device)
    block = min(MERGE_CHANNELS, triton.next_power_of_2(channels))
    with torch.cuda.device(x.device if x.is_cuda else -1):
        merge_kernel[(groups, triton.cdiv(channels, block), pictures)](
            x,
            weights,
            order,
            ends,
            merged,
            merged_sizes,
            *x.stride(),
            tokens,
            groups,
            channels,
            TINY=torch.finfo(torch.float32).tiny,
            CHANNELS=block,
            num_warps=4,
        )
    return merged, merged_sizes
