"""Column sums of the attention matrix on a GPU, streamed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune.kernels._attention_triton import (
    LOG2_E,
    as_bytes,
    as_kernels_read,
    head_blocks,
    load_tile,
    locate,
)
from vtprune.kernels._log_sum_exp_triton import Call


@triton.jit
def add_rows(
    total, q_base, k1, k2, lse, row_mask, first, start, offset, key, rows, scale, q_row, q_dim,
    HIDES: tl.constexpr, COUNTED: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Add the probabilities of BLOCK_M rows to `total`; with HIDES, row r sees the keys up to r + offset only."""
    row = start + tl.arange(0, BLOCK_M)
    counts = row < rows
    if COUNTED:
        counts = counts & (tl.load(row_mask + row, mask=counts, other=0) != 0)
    # Rows that do not count have zeros for queries and an infinite sum, which leaves nothing of them.
    total_of_row = tl.load(lse + row, mask=counts, other=float("inf"))
    total_of_row = tl.where(total_of_row == float("-inf"), float("inf"), total_of_row * LOG2_E)
    offsets = (first + row).to(tl.int64) * q_row
    logits = tl.dot(load_tile(q_base, offsets, counts, q_dim, 0, D1, DIM), k1, input_precision="ieee")
    if D2 > 0:
        second = load_tile(q_base, offsets, counts, q_dim, D1, D2, DIM)
        logits = tl.dot(second, k2, logits, input_precision="ieee")
    shares = tl.exp2(logits * (scale * LOG2_E) - total_of_row[:, None])
    if HIDES:
        shares = tl.where(key[None, :] <= (row + offset)[:, None], shares, 0.0)
    return total + shares


@triton.jit
def column_mass_kernel(
    q, k, lse, out, row_mask, valid, borders,
    scale, rows, keys, heads, group, sequences,
    q_batch, q_head, q_row, q_dim, k_batch, k_head, k_row, k_dim, lse_batch, lse_head, rows_batch, valid_batch,
    out_batch, out_head,
    COUNTED: tl.constexpr, CAUSAL: tl.constexpr, VALID: tl.constexpr, SEQUENCES: tl.constexpr, DIM: tl.constexpr,
    D1: tl.constexpr, D2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What all rows of one head give to a block of keys.

    The keys stay, blocks of rows pass by. With the log-sum-exp of every row known, columns are independent of one
    another, so that padding matters only for what is stored, and a tile needs one product, one exponential and one
    addition per element; a causal mask is applied only where it cuts through a tile.
    """
    block = tl.program_id(0)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    first = 0
    if SEQUENCES > 0:
        first, rows, block, _ = locate(borders, block, sequences, 1, BLOCK_N, SEQUENCES)
        keys = rows
    key = block * BLOCK_N + tl.arange(0, BLOCK_N)
    k_tile = k + batch * k_batch + (head // group).to(tl.int64) * k_head
    k_offsets = (first + key).to(tl.int64) * k_row
    k1 = tl.trans(load_tile(k_tile, k_offsets, key < keys, k_dim, 0, D1, DIM))
    k2 = k1
    if D2 > 0:
        k2 = tl.trans(load_tile(k_tile, k_offsets, key < keys, k_dim, D1, D2, DIM))
    q_base = q + batch * q_batch + head.to(tl.int64) * q_head
    lse_base = lse + batch * lse_batch + head.to(tl.int64) * lse_head + first
    mask_base = row_mask + batch * rows_batch + first

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    offset = keys - rows
    clear = 0  # the first block of rows that see all these keys
    if CAUSAL:
        begin = tl.maximum(block * BLOCK_N - offset, 0) // BLOCK_M * BLOCK_M
        clear = tl.cdiv(tl.maximum(block * BLOCK_N + BLOCK_N - 1 - offset, 0), BLOCK_M) * BLOCK_M
        for start in range(begin, tl.minimum(clear, rows), BLOCK_M):
            total = add_rows(
                total, q_base, k1, k2, lse_base, mask_base, first, start, offset, key, rows, scale, q_row, q_dim,
                True, COUNTED, DIM, D1, D2, BLOCK_M,
            )  # fmt: skip
    for start in range(clear, rows, BLOCK_M):
        total = add_rows(
            total, q_base, k1, k2, lse_base, mask_base, first, start, offset, key, rows, scale, q_row, q_dim,
            False, COUNTED, DIM, D1, D2, BLOCK_M,
        )  # fmt: skip
    mass = tl.sum(total, 0)
    if VALID:
        seen = tl.load(valid + batch * valid_batch + first + key, mask=key < keys, other=0) != 0
        mass = tl.where(seen, mass, 0.0)
    tl.store(out + batch * out_batch + head.to(tl.int64) * out_head + first + key, mass, mask=key < keys)


def attention_column_mass_triton(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_valid: Tensor | None = None,
    row_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums over rows, (batch, heads, keys), and the log-sum-exp, (batch, heads, rows), of checked arguments."""
    q, k = as_kernels_read(q, k)
    batch, heads, rows, dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    scale = dim**-0.5 if scale is None else scale
    out = q.new_zeros((batch, heads, keys), dtype=torch.float32)
    if lse is None:
        lse = q.new_full((batch, heads, rows), -torch.inf, dtype=torch.float32)
        if lse.numel() and keys:
            call = Call(q, k, scale, None, row_mask, None, key_valid, causal, cu_seqlens, cu_seqlens)
            with torch.cuda.device_of(q):
                parts = call.lse()
            lse = parts[:, 0] if parts.shape[1] == 1 else parts.logsumexp(1)
    lse = lse.float().contiguous()
    if not out.numel() or not rows:
        return out, lse
    sequences = 0 if cu_seqlens is None else len(cu_seqlens) - 1
    d1, d2 = head_blocks(dim)
    if q.dtype == torch.float32:  # no tensor cores in full precision: operands go through registers
        block_m, block_n, warps, stages = (32, 32, 4, 2) if dim <= 128 else (16, 16, 4, 2)
    elif dim <= 128:
        block_m, block_n, warps, stages = 128, 128, 8, 3
    else:
        block_m, block_n, warps, stages = 64, 128, 8, 2
    with torch.cuda.device_of(q):
        column_mass_kernel[(triton.cdiv(keys, block_n) + sequences, batch * heads)](
            q, k, lse, out, as_bytes(row_mask, q), as_bytes(key_valid, q),
            q if cu_seqlens is None else cu_seqlens.contiguous(),
            scale, rows, keys, heads, heads // kv_heads, sequences,
            *q.stride(), *k.stride(), *lse.stride()[:2], rows, keys, *out.stride()[:2],
            COUNTED=row_mask is not None, CAUSAL=causal, VALID=key_valid is not None,
            SEQUENCES=triton.next_power_of_2(sequences) if sequences else 0, DIM=dim, D1=d1, D2=d2,
            BLOCK_M=block_m, BLOCK_N=block_n, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out, lse
