"""FlashAttention forward on a GPU that also returns the log-sum-exp of every row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune.kernels._attention_triton import (
    LN_2,
    LOG2_E,
    as_bytes,
    as_kernels_read,
    head_blocks,
    load_tile,
    locate,
    sees,
)


@triton.jit
def attend(
    q1, q2, acc1, acc2, top, total, k_base, v_base, valid, first, start, last, ok, keys, scale,
    k_row, k_dim, v_row, v_dim,
    HIDES: tl.constexpr, LIMITED: tl.constexpr, VALID: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr,
    D2: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: a block of keys and values more. HIDES: not every row sees all of them."""
    key = start + tl.arange(0, BLOCK_N)
    there = (first + key).to(tl.int64)
    logits = tl.dot(
        q1, tl.trans(load_tile(k_base, there * k_row, key < keys, k_dim, 0, D1, DIM)), input_precision="ieee"
    )
    if D2 > 0:
        second = load_tile(k_base, there * k_row, key < keys, k_dim, D1, D2, DIM)
        logits = tl.dot(q2, tl.trans(second), logits, input_precision="ieee")
    logits = logits * (scale * LOG2_E)
    if HIDES:
        seen = sees(key, ok, last, keys, valid, valid, last, 0, LIMITED, VALID, False)
        logits = tl.where(seen, logits, float("-inf"))
    higher = tl.maximum(top, tl.max(logits, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(logits - base[:, None])
    keep = tl.exp2(top - base)
    total = total * keep + tl.sum(weights, 1)
    real = key < keys
    if VALID:  # what nobody sees may be anything, and zero times NaN is NaN
        real = real & (tl.load(valid + key, mask=real, other=0) != 0)
    values = load_tile(v_base, there * v_row, real, v_dim, 0, D1, DIM)
    weights = weights.to(values.dtype)
    acc1 = tl.dot(weights, values, acc1 * keep[:, None], input_precision="ieee")
    if D2 > 0:
        values = load_tile(v_base, there * v_row, real, v_dim, D1, D2, DIM)
        acc2 = tl.dot(weights, values, acc2 * keep[:, None], input_precision="ieee")
    return acc1, acc2, higher, total


@triton.jit
def flash_kernel(
    q, k, v, out, lse, valid, borders,
    scale, rows, keys, heads, group, sequences,
    q_batch, q_head, q_row, q_dim, k_batch, k_head, k_row, k_dim, v_batch, v_head, v_row, v_dim,
    out_batch, out_head, out_row, lse_batch, lse_head, valid_batch,
    CAUSAL: tl.constexpr, VALID: tl.constexpr, SEQUENCES: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr,
    D2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attention of a block of rows of one head; FlashAttention-2 (Dao, arXiv 2307.08691), forward.

    Keys that all rows see come first, in a loop without masks.
    """
    block = tl.program_id(0)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    first = 0
    if SEQUENCES > 0:
        first, rows, block, _ = locate(borders, block, sequences, 1, BLOCK_M, SEQUENCES)
        keys = rows
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = row < rows
    there = (first + row).to(tl.int64)
    q_tile = batch * q_batch + head.to(tl.int64) * q_head + there * q_row
    q1 = load_tile(q, q_tile, ok, q_dim, 0, D1, DIM)
    q2 = q1
    acc1 = tl.zeros([BLOCK_M, D1], tl.float32)
    acc2 = acc1
    if D2 > 0:
        q2 = load_tile(q, q_tile, ok, q_dim, D1, D2, DIM)
        acc2 = tl.zeros([BLOCK_M, D2], tl.float32)
    kv_head = (head // group).to(tl.int64)
    k_base = k + batch * k_batch + kv_head * k_head
    v_base = v + batch * v_batch + kv_head * v_head
    valid_base = valid + batch * valid_batch + first
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    last = tl.zeros([BLOCK_M], tl.int32) + keys - 1
    stop = tl.maximum(tl.zeros([], tl.int32) + keys, 0)
    clear = stop // BLOCK_N * BLOCK_N
    if CAUSAL:
        last = keys - rows + row
        stop = tl.minimum(tl.maximum(keys - rows + (block + 1) * BLOCK_M, 0), keys)
        clear = tl.minimum(tl.maximum(keys - rows + block * BLOCK_M + 1, 0), keys) // BLOCK_N * BLOCK_N
    if VALID:
        clear = tl.zeros([], tl.int32)
    for start in range(0, clear, BLOCK_N):
        acc1, acc2, top, total = attend(
            q1, q2, acc1, acc2, top, total, k_base, v_base, valid_base, first, start, last, ok, keys, scale,
            k_row, k_dim, v_row, v_dim, False, CAUSAL, VALID, DIM, D1, D2, BLOCK_N,
        )  # fmt: skip
    for start in range(clear, stop, BLOCK_N):
        acc1, acc2, top, total = attend(
            q1, q2, acc1, acc2, top, total, k_base, v_base, valid_base, first, start, last, ok, keys, scale,
            k_row, k_dim, v_row, v_dim, True, CAUSAL, VALID, DIM, D1, D2, BLOCK_N,
        )  # fmt: skip
    something = total != 0.0  # NaN is something
    found = tl.where(something, (top + tl.log2(total)) * LN_2, float("-inf"))
    tl.store(lse + batch * lse_batch + head.to(tl.int64) * lse_head + there, found, mask=ok)
    factor = 1.0 / tl.where(something, total, 1.0)
    out_rows = out + batch * out_batch + head.to(tl.int64) * out_head + there * out_row
    channel = tl.arange(0, D1)
    value = (acc1 * factor[:, None]).to(out.dtype.element_ty)
    tl.store(out_rows[:, None] + channel[None, :], value, mask=ok[:, None] & (channel < DIM)[None, :])
    if D2 > 0:
        channel = D1 + tl.arange(0, D2)
        value = (acc2 * factor[:, None]).to(out.dtype.element_ty)
        tl.store(out_rows[:, None] + channel[None, :], value, mask=ok[:, None] & (channel < DIM)[None, :])


def flash_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention, (batch, heads, rows, dim), and log-sum-exp, (batch, heads, rows), of checked arguments."""
    dtype = q.dtype
    q, k, v = as_kernels_read(q, k, v)
    batch, heads, rows, dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    out = q.new_zeros((batch, rows, heads, dim)).transpose(1, 2)  # the layout that the output projection wants
    lse = q.new_full((batch, heads, rows), -torch.inf, dtype=torch.float32)
    if not out.numel() or not keys:
        return out.to(dtype), lse
    sequences = 0 if cu_seqlens is None else len(cu_seqlens) - 1
    d1, d2 = head_blocks(dim)
    if q.dtype == torch.float32:  # no tensor cores in full precision: operands go through registers
        block_m, block_n, warps, stages = (32, 32, 4, 2) if dim <= 128 else (16, 16, 4, 2)
    elif dim <= 128:
        block_m, block_n, warps, stages = 128, 64, 8, 3
    else:
        block_m, block_n, warps, stages = 64, 64, 8, 2
    if rows <= 16:
        block_m = 16
    with torch.cuda.device_of(q):
        flash_kernel[(triton.cdiv(rows, block_m) + sequences, batch * heads)](
            q, k, v, out, lse, as_bytes(key_valid, q), q if cu_seqlens is None else cu_seqlens.contiguous(),
            dim**-0.5 if scale is None else scale, rows, keys, heads, heads // kv_heads, sequences,
            *q.stride(), *k.stride(), *v.stride(), *out.stride()[:3], *lse.stride()[:2], keys,
            CAUSAL=causal, VALID=key_valid is not None,
            SEQUENCES=triton.next_power_of_2(sequences) if sequences else 0, DIM=dim, D1=d1, D2=d2,
            BLOCK_M=block_m, BLOCK_N=block_n, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out.to(dtype), lse
