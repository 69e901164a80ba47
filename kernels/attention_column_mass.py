"""Attention that every key receives from all rows: column sums of the attention matrix, without the matrix."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from vtprune.kernels._attention import (
    Sight,
    check_borders,
    check_like,
    check_queries_keys,
    column_sums,
    last_keys,
    probability_blocks,
    rows_per_key,
    sequences,
    triton_refusal,
)
from vtprune.kernels._dispatch import runs_on_triton

ReduceHeads = Literal["mean", "group"] | None


@overload
def attention_column_mass(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_valid: Tensor | None = None,
    row_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    lse: Tensor | None = None,
    reduce_heads: ReduceHeads = "mean",
    normalise: Literal["mean", "sum"] = "mean",
    return_lse: Literal[False] = False,
    block: int | None = None,
) -> Tensor: ...


@overload
def attention_column_mass(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_valid: Tensor | None = None,
    row_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    lse: Tensor | None = None,
    reduce_heads: ReduceHeads = "mean",
    normalise: Literal["mean", "sum"] = "mean",
    return_lse: Literal[True],
    block: int | None = None,
) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def attention_column_mass(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_valid: Tensor | None = None,
    row_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    lse: Tensor | None = None,
    reduce_heads: ReduceHeads = "mean",
    normalise: Literal["mean", "sum"] = "mean",
    return_lse: bool = False,
    block: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention that every key receives from all query rows, in float32.

    The importance signal of encoders without [CLS], and of caches that keep heavy hitters (H2O, arXiv 2306.14048). Same
    computation and same treatment of NaN as `attention_scores`; this one is built for as many rows as keys, which
    pass the keys block by block.

    Args:
        q: (batch, heads, rows, dim), rotary embedding already applied; float16, bfloat16 or float32.
        k: (batch, kv_heads, keys, dim); consecutive query heads share a key head.
        scale: Factor on the logits, 1 / sqrt(dim) if None.
        causal: The rows are the last ones of the sequence: the last row sees all keys, the one before it all but one.
        key_valid: bool, (batch, keys), False for keys that nobody sees, such as padding.
        row_mask: bool, (batch, rows), False for rows that do not count, such as padding.
        cu_seqlens: int, (sequences + 1,), borders of sequences that are packed along the axes of rows and keys, which
            are then equally long, in a batch of 1. Rows see keys of their own sequence only.
        lse: float, (batch, heads, rows), natural log-sum-exp of the scaled, masked logits, -inf where a row sees
            nothing, as attention kernels return it; saves half of the work.
        reduce_heads: "mean" over all heads; "group": the sum over the query heads that share a key head; or None.
        normalise: "mean" over the rows that count, of the key's sequence; or their "sum".
        return_lse: Whether to return the log-sum-exp as well.
        block: Rows per step of the torch reference; None: as many as fit the processor's cache.

    Returns:
        (batch, keys), with "group" (batch, kv_heads, keys), with None (batch, heads, keys); with `return_lse` also
        the log-sum-exp, (batch, heads, rows), -inf for rows that do not count or see nothing. A mean over heads and
        rows that all see something sums to 1.

    Raises:
        ValueError: Shapes or options that do not fit together.
        TypeError: A mask that is not bool.
    """
    check_queries_keys(q, k)
    (batch, heads, rows, _), (kv_heads, keys) = q.shape, k.shape[1:3]
    if reduce_heads not in ("mean", "group", None):
        raise ValueError(f"reduce_heads must be 'mean', 'group' or None, got {reduce_heads!r}.")
    if normalise not in ("mean", "sum"):
        raise ValueError(f"normalise must be 'mean' or 'sum', got {normalise!r}.")
    check_borders(batch, cu_seqlens=cu_seqlens)
    if cu_seqlens is not None and rows != keys:
        raise ValueError(f"cu_seqlens needs as many rows as keys, got {rows} and {keys}; see attention_scores.")
    check_like("key_valid", key_valid, (batch, keys), "bool")
    check_like("row_mask", row_mask, (batch, rows), "bool")
    check_like("lse", lse, (batch, heads, rows), "float")
    reason = triton_refusal(q, k, borders=cu_seqlens)
    given: dict[str, Any] = dict(
        scale=scale, causal=causal, key_valid=key_valid, row_mask=row_mask, cu_seqlens=cu_seqlens, lse=lse
    )
    if runs_on_triton("attention_column_mass", reason, q, k, key_valid, row_mask, cu_seqlens, lse):
        from vtprune.kernels.attention_column_mass_triton import attention_column_mass_triton

        mass, found = attention_column_mass_triton(q, k, **given)
    else:
        mass, found = attention_column_mass_reference(q, k, **given, want_lse=return_lse, block=block)
    if reduce_heads == "mean":
        mass = mass.mean(1)
    elif reduce_heads == "group":
        mass = mass.unflatten(1, (kv_heads, heads // kv_heads)).sum(2)
    if normalise == "mean":
        mass = mass / rows_per_key(mass, row_mask, rows, cu_seqlens, cu_seqlens)
    return (mass, found) if return_lse else mass


def attention_column_mass_reference(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_valid: Tensor | None = None,
    row_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    lse: Tensor | None = None,
    want_lse: bool = True,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums over rows, (batch, heads, keys), and log-sum-exp, (batch, heads, rows), in torch, of checked arguments."""
    batch, heads, rows, dim = q.shape
    keys = k.shape[2]
    mass = q.new_zeros((batch, heads, keys), dtype=torch.float32)
    found = q.new_full((batch, heads, rows), -torch.inf, dtype=torch.float32)
    for i, in_q, in_k in sequences(batch, rows, keys, cu_seqlens, cu_seqlens):
        sight = Sight(
            last_keys(in_q.stop - in_q.start, in_k.stop - in_k.start, q.device) if causal else None,
            causal,
            None if key_valid is None else key_valid[i, in_k],
            None,
            None if row_mask is None else row_mask[i, in_q],
        )
        for part in probability_blocks(
            q[i, :, in_q],
            k[i, :, in_k],
            dim**-0.5 if scale is None else scale,
            sight,
            lse=None if lse is None else lse[i, :, in_q],
            want_lse=want_lse,
            block=block,
        ):
            column_sums(part, mass[i, :, in_k], None, join_heads=False)
            if want_lse and part.lse is not None:
                of = slice(part.kv_heads.start * part.lse.shape[1], part.kv_heads.stop * part.lse.shape[1])
                found[i, of, in_q][:, part.rows] = part.lse.flatten(0, 1)
    return mass, found if lse is None else lse
