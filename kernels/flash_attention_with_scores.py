"""Attention that also says how important each key was, in the same call."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vtprune.kernels._attention import (
    Sight,
    check_borders,
    check_like,
    check_queries_keys,
    last_keys,
    probability_blocks,
    sequences,
    triton_refusal,
)
from vtprune.kernels._dispatch import runs_on_triton
from vtprune.kernels._shared import full_precision
from vtprune.kernels.attention_column_mass import attention_column_mass
from vtprune.kernels.attention_scores import attention_scores


@torch.no_grad()
def flash_attention_with_scores(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scores: bool = True,
    score_rows: Tensor | None = None,
    reduce_heads: Literal["mean"] | None = "mean",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention, the log-sum-exp of its logits, and the mean attention that each key received from chosen rows.

    FlashAttention forward (Dao, arXiv 2307.08691) whose log-sum-exp then makes `attention_scores` or
    `attention_column_mass` one pass over the queries and keys. NaN in a query, or in a key or value that some row sees,
    comes out as NaN, in case of values also in other rows; keys and values ruled out by `key_valid` may hold anything.
    There are no gradients.

    Args:
        q: (batch, heads, rows, dim), rotary embedding already applied; float16, bfloat16 or float32, of any strides.
        k: (batch, kv_heads, keys, dim); consecutive query heads share a key head.
        v: The values, of the shape of `k`.
        scale: Factor on the logits, 1 / sqrt(dim) if None.
        causal: The rows are the last ones of the sequence: the last row sees all keys, the one before it all but one.
        key_valid: bool, (batch, keys), False for keys that nobody sees, such as padding.
        cu_seqlens: int, (sequences + 1,), borders of sequences that are packed along the axes of rows and keys, which
            are then equally long, in a batch of 1. Rows see keys of their own sequence only.
        scores: Whether the keys' importance is wanted.
        score_rows: The rows whose attention counts: None: all; bool, (batch, rows); or int, (batch, n), their numbers,
            -1 for none. Numbers are for few rows and cost accordingly; not with `cu_seqlens`.
        reduce_heads: "mean", or None to keep heads apart.

    Returns:
        The attention's output, (batch, heads, rows, dim) in the dtype of `q`, zeros where a row sees nothing; the
        natural log-sum-exp, float32 (batch, heads, rows), -inf where a row sees nothing; and the scores, float32
        (batch, keys) or (batch, heads, keys), or None.

    Raises:
        ValueError: Shapes or options that do not fit together.
        TypeError: A mask that is not bool.
    """
    check_queries_keys(q, k)
    (batch, _, rows, _), keys = q.shape, k.shape[2]
    if v.shape != k.shape:
        raise ValueError(f"v must have the shape of k, {tuple(k.shape)}, got {tuple(v.shape)}.")
    if reduce_heads not in ("mean", None):
        raise ValueError(f"reduce_heads must be 'mean' or None, got {reduce_heads!r}.")
    check_borders(batch, cu_seqlens=cu_seqlens)
    if cu_seqlens is not None and rows != keys:
        raise ValueError(f"cu_seqlens needs as many rows as keys, got {rows} and {keys}.")
    check_like("key_valid", key_valid, (batch, keys), "bool")
    numbered = score_rows is not None and score_rows.dtype != torch.bool
    if score_rows is not None and numbered:
        check_like("score_rows", score_rows, (batch, score_rows.shape[-1]), "int")
        if cu_seqlens is not None:
            raise ValueError("score_rows must be a bool (batch, rows) for packed sequences, got numbers.")
    elif scores:
        check_like("score_rows", score_rows, (batch, rows), "bool")
    given: dict[str, Any] = dict(scale=scale, causal=causal, key_valid=key_valid)
    reason = triton_refusal(q, k, v, borders=cu_seqlens)
    if runs_on_triton("flash_attention_with_scores", reason, q, k, v, key_valid, cu_seqlens, score_rows):
        from vtprune.kernels.flash_attention_with_scores_triton import flash_attention_triton

        out, lse = flash_attention_triton(q, k, v, **given, cu_seqlens=cu_seqlens)
    else:
        out, lse = flash_attention_reference(q, k, v, **given, cu_seqlens=cu_seqlens)
    if not scores:
        return out, lse, None
    if score_rows is not None and numbered:
        found = scores_of_rows(q, k, score_rows, lse=lse, reduce_heads=reduce_heads, **given)
    else:
        found = attention_column_mass(
            q, k, row_mask=score_rows, cu_seqlens=cu_seqlens, lse=lse, reduce_heads=reduce_heads, **given
        )
    return out, lse, found


def scores_of_rows(
    q: Tensor,
    k: Tensor,
    score_rows: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_valid: Tensor | None = None,
    lse: Tensor | None = None,
    reduce_heads: Literal["mean"] | None = "mean",
) -> Tensor:
    """Mean attention that each key received from the rows with the numbers (batch, n); see above."""
    index = score_rows.long().clamp_min(0)[:, None, :]
    queries = q.take_along_dim(index[..., None], 2)
    return attention_scores(
        queries,
        k,
        scale=scale,
        row_positions=score_rows + (k.shape[2] - q.shape[2]) if causal else None,
        row_mask=score_rows >= 0,
        key_valid=key_valid,
        lse=None if lse is None else lse.take_along_dim(index, 2),
        reduce_heads=reduce_heads,
    )


def flash_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention, (batch, heads, rows, dim), and log-sum-exp, (batch, heads, rows), in torch, of checked arguments."""
    batch, heads, rows, dim = q.shape
    keys = k.shape[2]
    out = torch.zeros_like(q)
    lse = q.new_full((batch, heads, rows), -torch.inf, dtype=torch.float32)
    for i, in_q, in_k in sequences(batch, rows, keys, cu_seqlens, cu_seqlens):
        sight = Sight(
            last_keys(in_q.stop - in_q.start, in_k.stop - in_k.start, q.device) if causal else None,
            causal,
            None if key_valid is None else key_valid[i, in_k],
        )
        values = v[i, :, in_k].float()
        if key_valid is not None:  # what nobody sees may be anything, and zero times NaN is NaN
            values = values.masked_fill(~key_valid[i, in_k, None], 0.0)
        factor = dim**-0.5 if scale is None else scale
        for part in probability_blocks(q[i, :, in_q], k[i, :, in_k], factor, sight, want_lse=True):
            count, group, length, here = part.weights.shape
            with full_precision(values):
                joined = part.weights.view(count, group * length, here) @ values[part.kv_heads, :here]
            of = slice(part.kv_heads.start * group, part.kv_heads.stop * group)
            found = joined.view(count, group, length, dim) * part.factors
            out[i, of, in_q][:, part.rows] = found.flatten(0, 1).to(q.dtype)
            if part.lse is not None:
                lse[i, of, in_q][:, part.rows] = part.lse.flatten(0, 1)
    return out, lse
