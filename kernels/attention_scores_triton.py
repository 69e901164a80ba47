"""Attention of chosen query rows to every key on a GPU: their log-sum-exp, then probabilities summed as they appear."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune.kernels._attention import full_mask, rows_per_key
from vtprune.kernels._attention_triton import (
    LN_2,
    LOG2_E,
    as_bytes,
    as_kernels_read,
    border,
    head_blocks,
    load_lse,
    load_tile,
    locate,
    sees,
)


@triton.jit
def lse_kernel(
    q, k, lse, row_mask, positions, valid, mask, q_borders, k_borders,
    scale, rows, keys, kv_heads, splits, sequences,
    q_batch, q_head, q_row, q_dim, k_batch, k_head, k_row, k_dim,
    lse_batch, lse_split, lse_head, rows_batch, positions_batch, valid_batch,
    mask_batch, mask_head, mask_row, mask_key,
    GROUP: tl.constexpr, COUNTED: tl.constexpr, POSITIONS: tl.constexpr, CAUSAL: tl.constexpr, VALID: tl.constexpr,
    MASKED: tl.constexpr, SEQUENCES: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Natural log-sum-exp of the visible logits of each row, over one share of the keys.

    One program: BLOCK_M rows of the query heads that share a key head (they follow one another, so that a single row
    per head still fills a tile), and every key of its share.
    """
    block = tl.program_id(0)
    split = tl.program_id(1)
    batch = (tl.program_id(2) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(2) % kv_heads).to(tl.int64)
    q_start = 0
    k_start = 0
    if SEQUENCES > 0:
        q_start, rows, block, sequence = locate(q_borders, block, sequences, GROUP, BLOCK_M, SEQUENCES)
        k_start, keys = border(k_borders, tl.minimum(sequence, sequences - 1))
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    ok = m < rows * GROUP
    row = m % tl.maximum(rows, 1)
    head = kv_head * GROUP + (m // tl.maximum(rows, 1)).to(tl.int64)
    there = (q_start + row).to(tl.int64)
    counts = ok
    if COUNTED:
        counts = ok & (tl.load(row_mask + batch * rows_batch + there, mask=ok, other=0) != 0)
    last = tl.zeros([BLOCK_M], tl.int32) + keys - 1
    if POSITIONS:
        last = tl.load(positions + batch * positions_batch + there, mask=ok, other=0).to(tl.int32)
    if CAUSAL:
        last = keys - rows + row
    last = tl.where(counts, tl.minimum(last, keys - 1), -1)

    q_tile = batch * q_batch + head * q_head + there * q_row
    q1 = load_tile(q, q_tile, counts, q_dim, 0, D1, DIM)
    if D2 > 0:
        q2 = load_tile(q, q_tile, counts, q_dim, D1, D2, DIM)
    k_base = k + batch * k_batch + kv_head * k_head
    valid_base = valid + batch * valid_batch + k_start
    mask_rows = batch * mask_batch + head * mask_head + there * mask_row

    share = (keys + splits * BLOCK_N - 1) // (splits * BLOCK_N) * BLOCK_N
    stop = tl.minimum((split + 1) * share, tl.max(last, 0) + 1)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(split * share, stop, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        k_tile = (k_start + key).to(tl.int64) * k_row
        logits = tl.dot(q1, tl.trans(load_tile(k_base, k_tile, key < keys, k_dim, 0, D1, DIM)), input_precision="ieee")
        if D2 > 0:
            second = load_tile(k_base, k_tile, key < keys, k_dim, D1, D2, DIM)
            logits = tl.dot(q2, tl.trans(second), logits, input_precision="ieee")
        seen = sees(key, ok, last, keys, valid_base, mask, mask_rows, mask_key, POSITIONS or CAUSAL, VALID, MASKED)
        logits = tl.where(seen, logits * (scale * LOG2_E), float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(logits - base[:, None]), 1)
        top = higher
    out = lse + batch * lse_batch + split.to(tl.int64) * lse_split + head * lse_head + there
    found = tl.where(counts & (top > float("-inf")), (top + tl.log2(total)) * LN_2, total + float("-inf"))
    tl.store(out, found, mask=ok)


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
        call = _Call(q, k, scale, mask, row_mask, row_positions, key_valid, causal, cu_seqlens_q, cu_seqlens_k)
        with torch.cuda.device_of(q):
            lse = call.lse() if lse is None else lse[:, None].float().contiguous()
            call.scores(lse, out, pack, loop, reduce_heads == "max", maximum, reduce_rows is None, row_weights)
    if reduce_heads is not None:
        out = out.squeeze(1) if programs == 1 else out.amax(1) if reduce_heads == "max" else out.sum(1)
    if reduce_heads == "mean":
        out /= heads
    return out / rows_per_key(out, row_mask, rows, cu_seqlens_q, cu_seqlens_k) if reduce_rows == "mean" else out


class _Call:
    """The arguments that both kernels share, in their order."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        scale: float,
        mask: Tensor | None,
        row_mask: Tensor | None,
        positions: Tensor | None,
        valid: Tensor | None,
        causal: bool,
        cu_seqlens_q: Tensor | None,
        cu_seqlens_k: Tensor | None,
    ) -> None:
        self.q, self.k, self.scale = q, k, scale
        self.batch, self.heads, self.rows, self.dim = q.shape
        self.kv_heads, self.keys = k.shape[1], k.shape[2]
        self.row_mask, self.valid = as_bytes(row_mask, q), as_bytes(valid, q)
        self.positions = q if positions is None else positions.contiguous()
        self.mask = q if mask is None else mask.view(torch.uint8)
        strides = (
            (0, 0, 0, 0)
            if mask is None
            else full_mask(mask, self.batch, self.rows, self.keys).expand(-1, self.heads, -1, -1).stride()
        )
        self.mask_strides = strides
        self.sequences = 0 if cu_seqlens_q is None else len(cu_seqlens_q) - 1
        self.borders = (q, q) if cu_seqlens_q is None else (cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous())  # type: ignore[union-attr]
        first, second = head_blocks(self.dim)
        self.options = dict(
            COUNTED=row_mask is not None,
            POSITIONS=positions is not None,
            CAUSAL=causal,
            VALID=valid is not None,
            MASKED=mask is not None,
            SEQUENCES=triton.next_power_of_2(self.sequences) if self.sequences else 0,
            DIM=self.dim,
            D1=first,
            D2=second,
            num_warps=4,
        )
        self.narrow = q.dtype == torch.float32  # products in full precision use no tensor cores, and twice the space

    def lse(self) -> Tensor:
        """Log-sum-exp of every row, (batch, splits, heads, rows): few rows split their keys to fill the GPU."""
        group = self.heads // self.kv_heads
        block_m = self._block_m(self.rows * group)
        blocks = triton.cdiv(self.rows * group, block_m) + self.sequences
        most = min(triton.cdiv(self.keys // max(self.sequences, 1), 256), 512 // (blocks * self.batch * self.kv_heads))
        splits = triton.next_power_of_2(max(most, 1) + 1) // 2
        lse = self.q.new_empty((self.batch, splits, self.heads, self.rows), dtype=torch.float32)
        lse_kernel[(blocks, splits, self.batch * self.kv_heads)](
            self.q, self.k, lse, self.row_mask, self.positions, self.valid, self.mask, *self.borders,
            self.scale, self.rows, self.keys, self.kv_heads, splits, self.sequences,
            *self.q.stride(), *self.k.stride(), *lse.stride()[:3], self.rows, self.rows, self.keys,
            *self.mask_strides,
            GROUP=group, BLOCK_M=block_m, BLOCK_N=32 if self.narrow else 64, num_stages=2, **self.options,
        )  # fmt: skip
        return lse

    def scores(
        self,
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
        block_m = self._block_m(self.rows * pack)
        block_n = 64
        if self.narrow or self.batch * programs * triton.cdiv(self.keys, block_n) < 128:
            block_n = 32
        rows_here = triton.cdiv(self.rows, block_m) if keep_rows else 1
        weighted = weights is not None
        weights = weights.contiguous() if weights is not None else self.q
        scores_kernel[(triton.cdiv(self.keys, block_n) + self.sequences, programs, self.batch * rows_here)](
            self.q, self.k, lse, out, self.row_mask, self.positions, weights,
            self.valid, self.mask, *self.borders,
            self.scale, self.rows, self.keys, loop, self.heads // self.kv_heads, self.sequences,
            *self.q.stride(), *self.k.stride(), *lse.stride()[:3], self.rows, self.rows, self.rows, self.keys,
            *self.mask_strides, *out.stride()[:2], out.stride(-2),
            PACK=pack, LOOP=loop > 1, MAX_HEADS=max_heads and loop > 1, MAX_ROWS=max_rows, KEEP_ROWS=keep_rows,
            WEIGHTED=weighted, SPLITS=lse.shape[1], BLOCK_M=block_m, BLOCK_N=block_n, num_stages=2,
            **self.options,
        )  # fmt: skip

    def _block_m(self, rows: int) -> int:
        return max(16, min(triton.next_power_of_2(rows), 32 if self.narrow else 64))
