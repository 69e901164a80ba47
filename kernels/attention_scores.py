"""Attention that chosen query rows pay to every key, reduced over heads and rows, without an N x N matrix."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vtprune.kernels._shared import check_shape, full_precision

ReduceRows = Literal["mean", "sum", "max"] | None
ReduceHeads = Literal["mean", "max"] | None


def attention_scores_reference(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    row_mask: Tensor | None = None,
    reduce_rows: ReduceRows = "mean",
    reduce_heads: ReduceHeads = "mean",
    block: int = 256,
) -> Tensor:
    """Attention probabilities of the query rows in `q` over all keys, in float32.

    The softmax runs over all keys that a row may attend to. Heads are reduced first, then rows. Query rows are
    streamed in blocks, so that reduced results never need more than `block` rows of probabilities at a time.

    Args:
        q: (batch, heads, rows, dim), the chosen query rows, rotary embedding already applied.
        k: (batch, kv_heads, keys, dim), rotary embedding already applied; `heads` is a multiple of `kv_heads`, and
            consecutive heads share a key head.
        scale: Factor on the logits, 1 / sqrt(dim) if None.
        mask: bool, broadcastable to (batch, 1 or heads, rows, keys), True where a row may attend. A row that may
            attend to nothing gets zeros.
        row_mask: bool, (batch, rows), True for the rows that count; all others give zeros and are left out of the mean.
        reduce_rows: How query rows are combined; None keeps the axis.
        reduce_heads: How heads are combined; None keeps the axis.
        block: Number of query rows per step.

    Returns:
        (batch, keys), with the axes of heads and rows in between where they are not reduced.
    """
    check_shape("q", q, "batch", "heads", "rows", "dim")
    check_shape("k", k, "batch", "kv_heads", "keys", "dim")
    batch, heads, rows, dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    if heads % kv_heads:
        raise ValueError(f"heads of q must be a multiple of the heads of k, got {heads} and {kv_heads}.")
    if reduce_rows not in ("mean", "sum", "max", None):
        raise ValueError(f"reduce_rows must be 'mean', 'sum', 'max' or None, got {reduce_rows!r}.")
    if reduce_heads not in ("mean", "max", None):
        raise ValueError(f"reduce_heads must be 'mean', 'max' or None, got {reduce_heads!r}.")
    if mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)]
    scale = dim**-0.5 if scale is None else scale
    transposed_keys = k.float().transpose(-1, -2)
    parts: list[Tensor] = []
    total = q.new_zeros((batch, heads, keys) if reduce_heads is None else (batch, keys), dtype=torch.float32)
    for start in range(0, rows, block):
        rows_here = slice(start, start + block)
        mask_here = mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows_here]
        part = _probabilities(q[:, :, rows_here].float() * scale, transposed_keys, mask_here)
        if reduce_heads is not None:
            part = part.mean(1) if reduce_heads == "mean" else part.amax(1)
        if row_mask is not None:
            counted = row_mask[:, rows_here, None]
            part = torch.where(counted if reduce_heads is not None else counted[:, None], part, 0.0)
        if reduce_rows is None:
            parts.append(part)
        elif reduce_rows == "max":
            total = torch.maximum(total, part.amax(-2))
        else:
            total += part.sum(-2)
    if reduce_rows is None:
        return torch.cat(parts, dim=-2) if parts else total.unsqueeze(-2)[..., :0, :]
    if reduce_rows == "mean":
        if row_mask is None:
            return total / max(rows, 1)
        return total / row_mask.sum(1).clamp_min(1).view(batch, *[1] * (total.ndim - 1))
    return total


def _probabilities(q: Tensor, transposed_keys: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of q k^T: (batch, heads, rows, keys)."""
    batch, heads, rows, dim = q.shape
    kv_heads, keys = transposed_keys.shape[1], transposed_keys.shape[3]
    # The heads that share a key head become rows of one product, instead of copies of the keys.
    with full_precision(q):
        logits = q.reshape(batch, kv_heads, heads // kv_heads * rows, dim) @ transposed_keys
    logits = logits.view(batch, heads, rows, keys)
    if mask is None:
        return logits.softmax(-1)
    logits = logits.masked_fill(~mask, -torch.inf)
    top = logits.amax(-1, keepdim=True)
    weights = (logits - top.masked_fill(top == -torch.inf, 0.0)).exp()
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def attention_column_mass_reference(q: Tensor, k: Tensor, *, scale: float | None = None, block: int = 256) -> Tensor:
    """Attention that every key receives on average from all query rows and heads, without a causal mask.

    The importance signal of encoders without [CLS]. Streamed over blocks of query rows.

    Args:
        q: (batch, heads, rows, dim).
        k: (batch, kv_heads, keys, dim).
        scale: Factor on the logits, 1 / sqrt(dim) if None.
        block: Number of query rows per step.

    Returns:
        (batch, keys) in float32; each row sums to 1.
    """
    return attention_scores_reference(q, k, scale=scale, block=block)


attention_scores = attention_scores_reference
attention_column_mass = attention_column_mass_reference
