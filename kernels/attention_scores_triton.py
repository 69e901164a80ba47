"""Attention of chosen query rows to every key on a GPU: their log-sum-exp, then probabilities summed as they appear."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune.kernels._attention import rows_per_key
from vtprune.kernels._attention_triton import LOG2_E, as_kernels_read, border, load_lse, load_tile, locate, sees
from vtprune.kernels._log_sum_exp_triton import Call


@triton.jit
def scores_kernel(
    q, k, lse, out, row_mask, positions, weights, valid, mask, q_borders, k_borders,
    scale, rows, keys, loop, group, sequences,
    q_batch, q_head, q_row, q_dim, k_batch, k_head, k_row, k_dim,
    lse_batch, lse_split, lse_head, rows_batch, positions_batch, weights_batch, valid_batch,
    mask_batch, mask_head, mask_row, mask_key, out_batch, out_head, out_row,
    PACK: tl.constexpr, LOOP: tl.constexpr, MAX_HEADS: tl.constexpr, MAX_ROWS: tl.constexpr, KEEP_ROWS: tl.constexpr,
    COUNTED: tl.constexpr, WEIGHTED: tl.constexpr, POSITIONS: tl.constexpr, CAUSAL: tl.constexpr, VALID: tl.constexpr,
    MASKED: tl.constexpr, SPLITS: tl.constexpr, SEQUENCES: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr,
    D2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Probabilities that rows give to a block of keys, reduced over the program's heads and rows.

    One program: BLOCK_N keys and some heads, in one of three arrangements. PACK heads that share a key head, their rows
    one after the other; `loop` heads, joined row by row (LOOP); or one head. It goes over all rows, or over one block
    of them that it stores as they are (KEEP_ROWS).
    """
    block = tl.program_id(0)
    heads_here = tl.program_id(1)
    blocks_m = tl.cdiv(rows, BLOCK_M)
    batch = tl.program_id(2).to(tl.int64)
    first_m = 0
    if KEEP_ROWS:
        batch = (tl.program_id(2) // blocks_m).to(tl.int64)
        first_m = tl.program_id(2) % blocks_m * BLOCK_M
    q_start = 0
    k_start = 0
    if SEQUENCES > 0:
        k_start, keys, block, sequence = locate(k_borders, block, sequences, 1, BLOCK_N, SEQUENCES)
        q_start, rows = border(q_borders, tl.minimum(sequence, sequences - 1))
    key = block * BLOCK_N + tl.arange(0, BLOCK_N)
    k_offsets = (k_start + key).to(tl.int64) * k_row + batch * k_batch
    first_head = heads_here * PACK
    if LOOP:
        first_head = 0
    else:
        own = k_offsets + (first_head // group).to(tl.int64) * k_head
        k1 = tl.trans(load_tile(k, own, key < keys, k_dim, 0, D1, DIM))
        if D2 > 0:
            k2 = tl.trans(load_tile(k, own, key < keys, k_dim, D1, D2, DIM))
    valid_base = valid + batch * valid_batch + k_start

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    packed = rows * PACK
    until = packed
    if KEEP_ROWS:
        until = tl.minimum(packed, first_m + BLOCK_M)
    for start in range(first_m, until, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        ok = m < packed
        row = m % tl.maximum(rows, 1)
        there = (q_start + row).to(tl.int64)
        counts = ok
        if COUNTED:
            counts = ok & (tl.load(row_mask + batch * rows_batch + there, mask=ok, other=0) != 0)
        last = tl.zeros([BLOCK_M], tl.int32) + keys - 1
        if POSITIONS:
            last = tl.load(positions + batch * positions_batch + there, mask=ok, other=0).to(tl.int32)
        if CAUSAL:
            last = keys - rows + row
        joined = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for step in range(0, loop):
            head = (first_head + step + m // tl.maximum(rows, 1)).to(tl.int64)
            q_tile = batch * q_batch + head * q_head + there * q_row
            if LOOP:
                own = k_offsets + (step // group).to(tl.int64) * k_head
                k1 = tl.trans(load_tile(k, own, key < keys, k_dim, 0, D1, DIM))
                if D2 > 0:
                    k2 = tl.trans(load_tile(k, own, key < keys, k_dim, D1, D2, DIM))
            logits = tl.dot(load_tile(q, q_tile, counts, q_dim, 0, D1, DIM), k1, input_precision="ieee")
            if D2 > 0:
                second = load_tile(q, q_tile, counts, q_dim, D1, D2, DIM)
                logits = tl.dot(second, k2, logits, input_precision="ieee")
            lse_rows = load_lse(lse, batch * lse_batch + head * lse_head + there, counts, lse_split, SPLITS)
            mask_rows = batch * mask_batch + head * mask_head + there * mask_row
            seen = sees(key, ok, last, keys, valid_base, mask, mask_rows, mask_key, POSITIONS or CAUSAL, VALID, MASKED)
            # Never above 1, also where this product is rounded otherwise than that of the first pass.
            exponent = tl.minimum(logits * (scale * LOG2_E) - lse_rows[:, None], 0.0, tl.PropagateNan.ALL)
            share = tl.where(seen, tl.exp2(exponent), 0.0)
            if MAX_HEADS:
                joined = tl.maximum(joined, share, tl.PropagateNan.ALL)
            else:
                joined += share
        if WEIGHTED:
            weight = tl.load(weights + batch * weights_batch + there, mask=counts, other=0.0).to(tl.float32)
            joined = joined * weight[:, None]
        if MAX_ROWS:
            total = tl.maximum(total, joined, tl.PropagateNan.ALL)
        else:
            total += joined
    out_keys = out + batch * out_batch + heads_here.to(tl.int64) * out_head + k_start + key
    if KEEP_ROWS:
        m = first_m + tl.arange(0, BLOCK_M)
        where = out_keys[None, :] + (q_start + m)[:, None].to(tl.int64) * out_row
        tl.store(where, total, mask=(m < rows)[:, None] & (key < keys)[None, :])
    elif MAX_ROWS:
        broken = tl.sum((total != total).to(tl.int32), 0) > 0  # a maximum over lanes would drop NaN
        tl.store(out_keys, tl.where(broken, float("nan"), tl.max(total, 0)), mask=key < keys)
    else:
        tl.store(out_keys, tl.sum(total, 0), mask=key < keys)


def attention_scores_triton(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    row_mask: Tensor | None = None,
    row_positions: Tensor | None = None,
    key_valid: Tensor | None = None,
    causal: bool = False,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    lse: Tensor | None = None,
    reduce_rows: str | None = "mean",
    row_weights: Tensor | None = None,
    reduce_heads: str | None = "mean",
) -> Tensor:
    """`attention_scores` on a GPU, for arguments that it has checked and that `triton_refusal` lets pass."""
    q, k = as_kernels_read(q, k)
    batch, heads, rows, dim = q.shape
    keys = k.shape[2]
    group = heads // k.shape[1]
    if rows == 1 and reduce_rows == "max":
        reduce_rows = "sum"
    maximum = reduce_rows == "max"
    separable = reduce_rows is not None and (reduce_heads is None or (reduce_heads == "max") == maximum)
    loop = 1 if reduce_heads is None or separable else heads
    pack = group if reduce_heads is not None and separable else 1
    programs = 1 if loop > 1 else heads // pack
    out = q.new_zeros((batch, programs, *([rows] if reduce_rows is None else []), keys), dtype=torch.float32)
    if out.numel() and rows:
        scale = dim**-0.5 if scale is None else scale
        call = Call(q, k, scale, mask, row_mask, row_positions, key_valid, causal, cu_seqlens_q, cu_seqlens_k)
        with torch.cuda.device_of(q):
            lse = call.lse() if lse is None else lse[:, None].float().contiguous()
            _launch(call, lse, out, pack, loop, reduce_heads == "max", maximum, reduce_rows is None, row_weights)
    if reduce_heads is not None:
        out = out.squeeze(1) if programs == 1 else out.amax(1) if reduce_heads == "max" else out.sum(1)
    if reduce_heads == "mean":
        out /= heads
    return out / rows_per_key(out, row_mask, rows, cu_seqlens_q, cu_seqlens_k) if reduce_rows == "mean" else out


def _launch(
    call: Call,
    lse: Tensor,
    out: Tensor,
    pack: int,
    loop: int,
    max_heads: bool,
    max_rows: bool,
    keep_rows: bool,
    weights: Tensor | None,
) -> None:
    """Probabilities from the log-sum-exp, reduced into `out`, (batch, programs, keys) or with rows before keys."""
    programs = out.shape[1]
    block_m = call.block_m(call.rows * pack)
    few = call.batch * programs * triton.cdiv(call.keys, 64) < 128
    block_n = call.block_n(32 if few else 64)
    rows_here = triton.cdiv(call.rows, block_m) if keep_rows else 1
    weighted = weights is not None
    weights = weights.contiguous() if weights is not None else call.q
    scores_kernel[(triton.cdiv(call.keys, block_n) + call.sequences, programs, call.batch * rows_here)](
        call.q, call.k, lse, out, call.row_mask, call.positions, weights,
        call.valid, call.mask, *call.borders,
        call.scale, call.rows, call.keys, loop, call.heads // call.kv_heads, call.sequences,
        *call.q.stride(), *call.k.stride(), *lse.stride()[:3], call.rows, call.rows, call.rows, call.keys,
        *call.mask_strides, *out.stride()[:2], out.stride(-2),
        PACK=pack, LOOP=loop > 1, MAX_HEADS=max_heads and loop > 1, MAX_ROWS=max_rows, KEEP_ROWS=keep_rows,
        WEIGHTED=weighted, SPLITS=lse.shape[1], BLOCK_M=block_m, BLOCK_N=block_n, num_stages=2,
        **call.options,
    )  # fmt: skip
