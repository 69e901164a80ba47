"""Tiles of cosine similarities: what the kernels of `greedy_select` and `bipartite_merge` share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _split(x):
    """Float32 as a sum of two numbers that tensor cores (tf32: 10 bits of fraction) take nearly unrounded."""
    bits = x.to(tl.int32, bitcast=True)
    high = ((bits + 4096) & -8192).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def similarity_tile(
    x,
    y,
    x_row,
    x_channel,
    y_row,
    y_channel,
    rows,
    columns,
    row_count,
    column_count,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Products of rows of `x` with rows of `y`: (ROWS, COLUMNS) in float32.

    Three products on tensor cores stand for one in float32, two to four times as fast as float32 arithmetic outside
    them. They are added up apart: swapping `x` and `y` then only swaps the operands of additions, so that the result is
    symmetric to the last bit, and equal rows give equal bits wherever they lie.
    """
    offsets = tl.arange(0, CHANNELS)
    high = tl.zeros((ROWS, COLUMNS), tl.float32)
    left = tl.zeros((ROWS, COLUMNS), tl.float32)
    right = tl.zeros((ROWS, COLUMNS), tl.float32)
    row_ok = rows < row_count
    column_ok = columns < column_count
    for start in range(0, channels, CHANNELS):
        channel = start + offsets
        ok = channel < channels
        a = tl.load(
            x + rows.to(tl.int64)[:, None] * x_row + channel[None, :] * x_channel,
            mask=row_ok[:, None] & ok[None, :],
            other=0.0,
        )
        b = tl.load(
            y + columns.to(tl.int64)[:, None] * y_row + channel[None, :] * y_channel,
            mask=column_ok[:, None] & ok[None, :],
            other=0.0,
        )
        a_high, a_low = _split(a)
        b_high, b_low = _split(b)
        high = tl.dot(a_high, tl.trans(b_high), high, input_precision="tf32")
        left = tl.dot(a_high, tl.trans(b_low), left, input_precision="tf32")
        right = tl.dot(a_low, tl.trans(b_high), right, input_precision="tf32")
    return high + (left + right)
