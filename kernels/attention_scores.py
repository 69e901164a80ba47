"""Attention that chosen query rows pay to every key, reduced over heads and rows, without a rows x keys matrix."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vtprune.kernels._attention import (
    Block,
    Sight,
    check_borders,
    check_like,
    check_queries_keys,
    column_sums,
    full_mask,
    last_keys,
    probability_blocks,
    rows_per_key,
    sequences,
    triton_refusal,
)
from vtprune.kernels._dispatch import runs_on_triton
from vtprune.kernels._shared import full_precision

# So many probabilities are computed in one go; more of them block by block. 8 MiB of float32.
AT_ONCE = 2**21

ReduceRows = Literal["mean", "sum", "max"] | None
ReduceHeads = Literal["mean", "max"] | None


@torch.no_grad()
def attention_scores(
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
    reduce_rows: ReduceRows = "mean",
    row_weights: Tensor | None = None,
    reduce_heads: ReduceHeads = "mean",
    block: int | None = None,
) -> Tensor:
    """Attention probabilities of the query rows in `q` over all keys, in float32.

    The softmax of a row runs over all keys that it sees: those that every one of `mask`, `row_positions`, `key_valid`
    and `causal` lets it see. A row that sees nothing gives zeros. Heads are reduced first, then rows. Two passes, as
    in the backward pass of FlashAttention (Dao et al., arXiv 2205.14135): log-sum-exp of every row, then probabilities
    that are added up where they appear; so memory grows with rows + keys, unless rows are kept. NaN in a query row
    that counts, or in a key that is seen, comes out as NaN; elsewhere it does no harm. There are no gradients.

    Args:
        q: (batch, heads, rows, dim), the chosen query rows, rotary embedding already applied; float16, bfloat16 or
            float32, of any strides. Logits and all that follows are float32.
        k: (batch, kv_heads, keys, dim), rotary embedding already applied; `heads` is a multiple of `kv_heads`, and
            consecutive heads share a key head.
        scale: Factor on the logits, 1 / sqrt(dim) if None.
        mask: bool, broadcastable to (batch, 1 or heads, rows, keys), True where a row sees a key. Prefer the next
            arguments, which need no such matrix. Not together with `cu_seqlens_q`.
        row_mask: bool, (batch, rows), True for the rows that count; all others give zeros and are left out of the mean.
        row_positions: int, (batch, rows), the last key that each row sees; -1: none.
        key_valid: bool, (batch, keys), False for keys that nobody sees, such as padding.
        causal: The rows are the last ones of the sequence: the last row sees all keys, the one before it all but one.
        cu_seqlens_q: int, (sequences + 1,), borders of sequences that are packed along the axis of the rows, from 0 to
            `rows`, in a batch of 1. Rows see keys of their own sequence only; `row_positions` and `causal` are
            relative to it.
        cu_seqlens_k: The same for keys; both or none.
        lse: float, (batch, heads, rows), natural log-sum-exp of the scaled, masked logits, as attention kernels return
            it; saves the first pass. Where a row sees nothing, -inf.
        reduce_rows: How query rows are combined; None keeps the axis. The mean is over the rows of the key's sequence.
        row_weights: float, (batch, rows), factors on the rows for reduce_rows="sum".
        reduce_heads: How heads are combined; None keeps the axis.
        block: Rows per step of the torch reference; None: as many as fit the processor's cache.

    Returns:
        (batch, keys), with the axes of heads and rows in between where they are not reduced. Packed sequences stay
        packed; kept rows give zeros to the keys of other sequences.

    Raises:
        ValueError: Shapes or options that do not fit together.
        TypeError: A mask that is not bool, positions that are not integers.
    """
    given: dict[str, Any] = dict(
        scale=scale,
        mask=mask,
        row_mask=row_mask,
        row_positions=row_positions,
        key_valid=key_valid,
        causal=causal,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        lse=lse,
        reduce_rows=reduce_rows,
        row_weights=row_weights,
        reduce_heads=reduce_heads,
    )
    _check(q, k, **given)
    reason = triton_refusal(q, k, borders=cu_seqlens_q)
    tensors = (q, k, mask, row_mask, row_positions, key_valid, cu_seqlens_q, cu_seqlens_k, lse, row_weights)
    if runs_on_triton("attention_scores", reason, *tensors):
        from vtprune.kernels.attention_scores_triton import attention_scores_triton

        return attention_scores_triton(q, k, **given)
    return attention_scores_reference(q, k, **given, block=block)


def attention_scores_reference(
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
    reduce_rows: ReduceRows = "mean",
    row_weights: Tensor | None = None,
    reduce_heads: ReduceHeads = "mean",
    block: int | None = None,
) -> Tensor:
    """`attention_scores` in torch, for arguments that it has checked."""
    batch, heads, rows, dim = q.shape
    keys = k.shape[2]
    scale = dim**-0.5 if scale is None else scale
    if block is None and cu_seqlens_q is None and batch * heads * rows * keys <= AT_ONCE:
        if causal:
            row_positions = last_keys(rows, keys, q.device).expand(batch, -1)
        shares = _all_shares(q, k, scale, mask, row_mask, row_positions, key_valid, lse)
        return _reduced(shares, row_mask, row_weights, reduce_rows, reduce_heads)
    shape = [batch, *([] if reduce_heads else [heads]), *([] if reduce_rows else [rows]), keys]
    out = q.new_zeros(shape, dtype=torch.float32)
    if mask is not None:
        mask = full_mask(mask, batch, rows, keys)
    for i, in_q, in_k in sequences(batch, rows, keys, cu_seqlens_q, cu_seqlens_k):
        last = None if row_positions is None else row_positions[i, in_q]
        if causal:
            last = last_keys(in_q.stop - in_q.start, in_k.stop - in_k.start, q.device)
        sight = Sight(
            last,
            causal,
            None if key_valid is None else key_valid[i, in_k],
            None if mask is None else mask[i],
            None if row_mask is None else row_mask[i, in_q],
        )
        target = out[i, ..., in_k] if reduce_rows else out[i, ..., in_q, in_k]
        # A sum over rows and heads is a product with the rows' factors; all else needs the probabilities themselves,
        # and a maximum over heads, or rows that are kept, needs them of all heads at once.
        sums = reduce_rows in ("mean", "sum") and reduce_heads != "max"
        for part in probability_blocks(
            q[i, :, in_q],
            k[i, :, in_k],
            scale,
            sight,
            lse=None if lse is None else lse[i, :, in_q],
            all_heads=not sums and reduce_heads is not None,
            block=block,
        ):
            weights = None if row_weights is None else row_weights[i, in_q][part.rows, None].float()
            if sums:
                column_sums(part, target, weights, reduce_heads == "mean")
            else:
                _reduce(part, target, weights, reduce_rows, reduce_heads)
    if reduce_heads == "mean":
        out /= heads
    return out / rows_per_key(out, row_mask, rows, cu_seqlens_q, cu_seqlens_k) if reduce_rows == "mean" else out


def _all_shares(
    q: Tensor,
    k: Tensor,
    scale: float,
    mask: Tensor | None,
    row_mask: Tensor | None,
    row_positions: Tensor | None,
    key_valid: Tensor | None,
    lse: Tensor | None,
) -> Tensor:
    """All probabilities, (batch, heads, rows, keys): where they are few, this takes the fewest operators."""
    batch, heads, rows, dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    # The heads that share a key head become rows of one product, instead of copies of the keys.
    queries = (q.float() * scale).reshape(batch, kv_heads, heads // kv_heads * rows, dim)
    with full_precision(q):
        logits = (queries @ k.float().transpose(-1, -2)).view(batch, heads, rows, keys)
    hidden = None if mask is None else ~mask
    if key_valid is not None:
        more = ~key_valid[:, None, None]
        hidden = more if hidden is None else hidden | more
    if row_positions is not None:
        more = (torch.arange(keys, device=q.device) > row_positions[..., None])[:, None]
        hidden = more if hidden is None else hidden | more
    if hidden is not None:
        logits = logits.masked_fill(hidden, -torch.inf)
    if lse is not None:
        shares = (logits - lse[..., None].float().masked_fill(lse[..., None] == -torch.inf, torch.inf)).exp()
    elif hidden is None:
        shares = logits.softmax(-1)
    else:
        top = logits.amax(-1, keepdim=True)
        shares = (logits - top.masked_fill(top == -torch.inf, 0.0)).exp()
        shares = shares / shares.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return shares if row_mask is None else shares.masked_fill(~row_mask[:, None, :, None], 0.0)


def _reduced(
    shares: Tensor,
    row_mask: Tensor | None,
    row_weights: Tensor | None,
    reduce_rows: ReduceRows,
    reduce_heads: ReduceHeads,
) -> Tensor:
    """Probabilities (batch, heads, rows, keys), heads reduced first, then rows."""
    rows = shares.shape[2]
    if reduce_heads is not None:
        shares = shares.mean(1, keepdim=True) if reduce_heads == "mean" else shares.amax(1, keepdim=True)
    if row_weights is not None:
        shares = shares * row_weights[:, None, :, None]
    if reduce_rows == "max":
        shares = shares.amax(2, keepdim=True) if rows else shares.new_zeros(*shares.shape[:2], 1, shares.shape[3])
    elif reduce_rows is not None:
        shares = shares.sum(2, keepdim=True)
    if reduce_rows == "mean":
        counted = max(rows, 1) if row_mask is None else row_mask.sum(1).clamp_min(1)[:, None, None, None]
        shares = shares / counted
    axes = [axis for axis, reduced in ((1, reduce_heads), (2, reduce_rows)) if reduced]
    return shares.squeeze(axes) if axes else shares


def _reduce(
    part: Block, target: Tensor, row_weights: Tensor | None, reduce_rows: ReduceRows, reduce_heads: ReduceHeads
) -> None:
    """Take a block's probabilities into `target`, which has the axes that are not reduced."""
    shares = part.weights.mul_(part.factors).flatten(0, 1)  # (heads, rows, keys)
    keys = shares.shape[-1]
    if reduce_heads is None:
        group = part.weights.shape[1]
        target = target[part.kv_heads.start * group : part.kv_heads.stop * group]
    else:
        shares = shares.sum(0) if reduce_heads == "mean" else shares.amax(0)
    if row_weights is not None:
        shares = shares * row_weights
    if reduce_rows is None:
        target[..., part.rows, :keys] = shares
    elif reduce_rows == "max":
        target[..., :keys] = torch.maximum(target[..., :keys], shares.amax(-2))
    else:
        target[..., :keys] += shares.sum(-2)


def _check(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None,
    mask: Tensor | None,
    row_mask: Tensor | None,
    row_positions: Tensor | None,
    key_valid: Tensor | None,
    causal: bool,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    lse: Tensor | None,
    reduce_rows: str | None,
    row_weights: Tensor | None,
    reduce_heads: str | None,
) -> None:
    check_queries_keys(q, k)
    batch, heads, rows, _ = q.shape
    if reduce_rows not in ("mean", "sum", "max", None):
        raise ValueError(f"reduce_rows must be 'mean', 'sum', 'max' or None, got {reduce_rows!r}.")
    if reduce_heads not in ("mean", "max", None):
        raise ValueError(f"reduce_heads must be 'mean', 'max' or None, got {reduce_heads!r}.")
    if row_weights is not None and reduce_rows != "sum":
        raise ValueError(f"row_weights need reduce_rows='sum', got {reduce_rows!r}.")
    if causal and row_positions is not None:
        raise ValueError("causal and row_positions both say which keys a row sees; give one of them.")
    check_borders(batch, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    check_like("row_mask", row_mask, (batch, rows), "bool")
    check_like("row_positions", row_positions, (batch, rows), "int")
    check_like("row_weights", row_weights, (batch, rows), "float")
    check_like("key_valid", key_valid, (batch, k.shape[2]), "bool")
    check_like("lse", lse, (batch, heads, rows), "float")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True where a row sees a key, got {mask.dtype}.")
        if cu_seqlens_q is not None:
            raise ValueError("mask cannot be combined with packed sequences; use row_positions, key_valid or causal.")
        full_mask(mask, batch, rows, k.shape[2])
