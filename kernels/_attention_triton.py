"""What the attention kernels share: their logits, which keys a row sees, and where packed sequences lie."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def locate(borders, block, sequences, factor, BLOCK: tl.constexpr, SEQUENCES: tl.constexpr):
    """Start and length of the packed sequence to which a block belongs, and the block's number in it.

    Every sequence has as many blocks as cover `factor` times its length. Blocks beyond the last one get the length 0:
    launches are as large as they might have to be, because the host does not read the borders.
    """
    number = tl.arange(0, SEQUENCES)
    starts = tl.load(borders + number, mask=number < sequences, other=0).to(tl.int32)
    ends = tl.load(borders + number + 1, mask=number < sequences, other=0).to(tl.int32)
    blocks = ((ends - starts) * factor + BLOCK - 1) // BLOCK
    until = tl.cumsum(blocks, 0)
    here = number == tl.sum((until <= block).to(tl.int32), 0)
    start = tl.sum(tl.where(here, starts, 0), 0)
    length = tl.sum(tl.where(here, ends - starts, 0), 0)
    return start, length, block - tl.sum(tl.where(here, until - blocks, 0), 0), tl.sum(tl.where(here, number, 0), 0)


@triton.jit
def border(borders, sequence):
    """Start and length of a packed sequence."""
    start = tl.load(borders + sequence).to(tl.int32)
    return start, tl.load(borders + sequence + 1).to(tl.int32) - start


@triton.jit
def load_tile(base, offsets, ok, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """Channels FIRST to FIRST + WIDTH of the rows that start at base + offsets, zero beyond DIM and where not `ok`."""
    channel = FIRST + tl.arange(0, WIDTH)
    where = base + offsets[:, None] + channel[None, :].to(tl.int64) * stride
    return tl.load(where, mask=ok[:, None] & (channel < DIM)[None, :], other=0.0)


@triton.jit
def load_lse(base, offsets, ok, split_stride, SPLITS: tl.constexpr):
    """Log-sum-exp of rows in base 2, joined from its parts; +inf, which makes probabilities 0, for rows without any."""
    split = tl.arange(0, SPLITS).to(tl.int64)
    where = base + offsets[:, None] + split[None, :] * split_stride
    parts = tl.load(where, mask=ok[:, None] & (split >= 0)[None, :], other=float("-inf")) * LOG2_E
    top = tl.max(parts, 1)
    top = tl.where(top == float("-inf"), 0.0, top)
    joined = top + tl.log2(tl.sum(tl.exp2(parts - top[:, None]), 1))
    return tl.where(joined == float("-inf"), float("inf"), joined)


@triton.jit
def sees(key, ok, last, keys, valid, mask, mask_offsets, mask_stride, LIMITED: tl.constexpr, VALID: tl.constexpr,
         MASKED: tl.constexpr):  # fmt: skip
    """Which of `keys` keys with the numbers `key` the rows see: bool, (rows or 1, keys).

    LIMITED: none behind a row's `last`. VALID: none that `valid`, of the first key, says no to. MASKED: none where the
    dense mask, in which a row begins at `mask_offsets`, says no; rows that are not `ok` are not in it.
    """
    seen = (key < keys)[None, :]
    if LIMITED:
        seen = seen & (key[None, :] <= last[:, None])
    if VALID:
        seen = seen & (tl.load(valid + key, mask=key < keys, other=0) != 0)[None, :]
    if MASKED:
        where = mask + mask_offsets[:, None] + key[None, :].to(tl.int64) * mask_stride
        seen = seen & (tl.load(where, mask=ok[:, None] & (key < keys)[None, :], other=0) != 0)
    return seen


def head_blocks(dim: int) -> tuple[int, int]:
    """Two widths, powers of two, that cover a head: 80 channels as 64 + 16 and not as 128. The second may be 0."""
    first = max(16, 1 << (dim.bit_length() - 1))
    return first, 0 if dim <= first else max(16, triton.next_power_of_2(dim - first))


def as_bytes(x: Tensor | None, like: Tensor) -> Tensor:
    """A bool tensor as a kernel reads it, without gaps; any tensor in place of one that is not there."""
    return like if x is None else x.contiguous().view(torch.uint8)


def as_kernels_read(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values as the kernels can read them: as they are, but for tests on the CPU.

    Triton's interpreter holds bfloat16 as integers and multiplies these in `tl.dot`; float32 gives the same products.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        return tensors
    return tuple(x.float() if x.dtype == torch.bfloat16 else x for x in tensors)
