"""The first of two passes over attention on a GPU: the log-sum-exp of every row."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune.kernels._attention import full_mask
from vtprune.kernels._attention_triton import LN_2, LOG2_E, as_bytes, border, head_blocks, load_tile, locate, sees


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


class Call:
    """The arguments that both passes over chosen rows share, and the first pass."""

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
        self.mask_strides: tuple[int, ...] = (0, 0, 0, 0)
        if mask is not None:
            whole = full_mask(mask, self.batch, self.rows, self.keys)
            self.mask_strides = whole.expand(-1, self.heads, -1, -1).stride()
        self.sequences = 0 if cu_seqlens_q is None else len(cu_seqlens_q) - 1
        self.borders = tuple(q if x is None else x.contiguous() for x in (cu_seqlens_q, cu_seqlens_k))
        first, second = head_blocks(self.dim)
        self.options: dict[str, Any] = dict(
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
        self.narrow = q.dtype == torch.float32  # no tensor cores in full precision: operands go through registers

    def lse(self) -> Tensor:
        """Log-sum-exp of every row, (batch, splits, heads, rows): few rows split their keys to fill the GPU."""
        group = self.heads // self.kv_heads
        block_m = self.block_m(self.rows * group)
        blocks = triton.cdiv(self.rows * group, block_m) + self.sequences
        most = min(triton.cdiv(self.keys // max(self.sequences, 1), 256), 512 // (blocks * self.batch * self.kv_heads))
        splits = triton.next_power_of_2(max(most, 1) + 1) // 2
        lse = self.q.new_empty((self.batch, splits, self.heads, self.rows), dtype=torch.float32)
        lse_kernel[(blocks, splits, self.batch * self.kv_heads)](
            self.q, self.k, lse, self.row_mask, self.positions, self.valid, self.mask, *self.borders,
            self.scale, self.rows, self.keys, self.kv_heads, splits, self.sequences,
            *self.q.stride(), *self.k.stride(), *lse.stride()[:3], self.rows, self.rows, self.keys,
            *self.mask_strides,
            GROUP=group, BLOCK_M=block_m, BLOCK_N=self.block_n(64), num_stages=2, **self.options,
        )  # fmt: skip
        return lse

    def block_m(self, rows: int) -> int:
        """Rows per tile."""
        return max(16, min(triton.next_power_of_2(rows), 64 if not self.narrow else 32 if self.dim <= 128 else 16))

    def block_n(self, keys: int) -> int:
        """Keys per tile, at most."""
        return keys if not self.narrow else 32 if self.dim <= 128 else 16
