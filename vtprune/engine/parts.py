"""Attention in parts: some queries, some heads, some entries at a time, each a dense product of torch's own kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vtprune.methods.base import Part


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    parts: Sequence[Part],
    *,
    valid: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """What heads bring to slots, (rows, slots, heads, value_dim); nothing to those that are in no part.

    Args:
        queries: (rows, heads, slots, head_dim), of the last entries.
        keys: (rows, kv_heads, entries, head_dim).
        values: (rows, kv_heads, entries, value_dim).
        parts: What is computed.
        valid: Bool (rows, entries), False on padding; None without padding.
        scale: Factor on the products; None: 1 / sqrt(head_dim).
        dropout: Its probability.
    """
    rows, heads, slots, _ = queries.shape
    if len(parts) == 1 and parts[0].slots is None and parts[0].heads is None:
        return _product(queries, keys, values, parts[0], valid, scale, dropout)[:, :, 0].transpose(1, 2)
    out = queries.new_zeros(rows, slots + 1, heads, values.shape[-1])  # the last is for padding to be written to
    for part in parts:
        if part.slots is not None and not part.slots.numel():
            continue
        brought = _product(queries, keys, values, part, valid, scale, dropout).flatten(2, 3).transpose(1, 2)
        chosen = torch.arange(heads, device=out.device) if part.heads is None else _index(part.heads, out)
        if part.slots is None:
            out[:, :slots, chosen] = brought
            continue
        at = _blocks(part.slots.to(out.device)).flatten(2).expand(rows, -1, -1).transpose(1, 2)  # (rows, n, heads)
        at = torch.where(at < 0, slots, at)
        every = torch.arange(rows, device=out.device).view(-1, 1, 1)
        out[every, at, chosen] = brought.to(out.dtype)
    return out[:, :slots]


def _index(numbers: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, device=like.device)


def _blocks(x: Tensor) -> Tensor:
    """A list with an axis of blocks, (rows, heads, blocks, n)."""
    return x if x.ndim == 4 else x.unsqueeze(2)


def _product(
    queries: Tensor, keys: Tensor, values: Tensor, part: Part, valid: Tensor | None, scale: float | None, dropout: float
) -> Tensor:
    """What a part brings, (rows, heads, blocks, n, value_dim)."""
    rows, heads, slots, _ = queries.shape
    kv_heads, entries = keys.shape[1:3]
    past, group = entries - slots, heads // kv_heads
    if part.lost is not None:
        values = values.masked_fill(part.lost.to(values.device).unsqueeze(-1), 0)
    if part.heads is not None:
        chosen = _index(part.heads, queries)
        queries = queries[:, chosen]
        whole = [h for h in range(0, heads, group) if all(h + i in part.heads for i in range(group))]
        if len(whole) * group == len(part.heads) and list(part.heads) == sorted(part.heads):
            pairs = _index([h // group for h in whole], keys)
        else:
            pairs, group = chosen // group, 1
        keys, values = keys[:, pairs], values[:, pairs]
    at = None if part.slots is None else _blocks(part.slots.to(queries.device))
    if part.itself:
        own = values.repeat_interleave(group, 1)[:, :, past:]
        return own.unsqueeze(2) if at is None else _take(own, at)
    to = None if part.entries is None else _blocks(part.entries.to(queries.device))
    if to is not None and to.shape[1] == keys.shape[1] < queries.shape[1] and at is not None and at.shape[1] > 1:
        to = to.repeat_interleave(group, 1)
    if to is not None and to.shape[1] not in (1, keys.shape[1]):
        group = 1  # every query head has a list of its own, and takes it from its key head
    mask, causal = _mask(part, at, to, valid, slots, past, queries.device)
    queries = queries.unsqueeze(2) if at is None else _take(queries, at)
    keys, values = (x.unsqueeze(2) if to is None else _take(x, to) for x in (keys, values))
    blocks = max(queries.shape[2], keys.shape[2])
    # Blocks become rows: (rows * blocks, heads, n, dim).
    q, k, v = (x.expand(-1, -1, blocks, -1, -1).transpose(1, 2).flatten(0, 1) for x in (queries, keys, values))
    seen: Tensor | None = None
    if mask is not None:
        mask = mask.expand(rows, -1, blocks, -1, -1).transpose(1, 2).flatten(0, 1)
        seen = mask.any(-1, keepdim=True)
        mask = mask | ~seen  # a softmax over nothing is not a number
    asking, n = q.shape[1:3]
    if group > 1 and n == 1 and (mask is None or mask.shape[1] in (1, k.shape[1])):
        q = q.unflatten(1, (-1, group)).flatten(2, 3)  # the queries of a group ask the same keys
    elif group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if mask is not None and mask.shape[1] not in (1, q.shape[1]):
            mask = mask.repeat_interleave(group, 1)
    out = nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale
    )
    out = out.reshape(rows * blocks, asking, n, -1)
    if seen is not None:
        if seen.shape[1] not in (1, asking):
            seen = seen.repeat_interleave(asking // seen.shape[1], 1)
        out = out.masked_fill(~seen, 0)
    return out.unflatten(0, (rows, blocks)).transpose(1, 2)


def _take(x: Tensor, at: Tensor) -> Tensor:
    """(rows, heads, n, dim) at (rows, heads, blocks, m) -> (rows, heads, blocks, m, dim); any where it is -1.

    Lists may be one for all heads, or several for each, one after the other.
    """
    rows, heads, length, dim = x.shape
    lists = max(heads, at.shape[1])
    starts = torch.arange(rows * heads, device=x.device).view(rows, heads, 1, 1) * length
    flat = at.clamp_min(0) + starts.repeat_interleave(lists // heads, 1)
    # Whole rows at once: a gather moves numbers one by one.
    return x.flatten(0, 2).index_select(0, flat.flatten()).view(rows, lists, *at.shape[2:], dim)


def _mask(
    part: Part,
    at: Tensor | None,
    to: Tensor | None,
    valid: Tensor | None,
    slots: int,
    past: int,
    device: torch.device,
) -> tuple[Tensor | None, bool]:
    """Bool (rows or 1, heads or 1, blocks or 1, n, m), None for all; and whether plain causality does without one."""
    gaps = to is not None and part.padded
    if to is not None and not part.padded:
        valid = None
    mask: Tensor | None = None
    if part.sees is not None:
        mask = part.sees.to(device)
        mask = mask if mask.ndim == 5 else mask.unsqueeze(2)
    elif slots > 1:  # a single slot is the last of all entries
        if part.slots is part.entries and past == 0 and valid is None and not gaps:
            return None, True
        asking = torch.arange(slots, device=device).view(1, 1, 1, -1) if at is None else at
        offered = torch.arange(past + slots, device=device).view(1, 1, 1, -1) if to is None else to
        mask = offered.unsqueeze(-2) <= (asking + past).unsqueeze(-1)
    if to is not None and gaps:
        mask = _and(mask, (to >= 0).unsqueeze(-2))
    if valid is not None:
        there = valid.to(device)[:, None, None, :]
        if to is not None:
            flat = to.clamp_min(0).flatten(1).expand(len(valid), -1)
            there = there[:, 0, 0].gather(1, flat).unflatten(1, to.shape[1:])
        mask = _and(mask, there.unsqueeze(-2))
    return mask, False


def _and(mask: Tensor | None, other: Tensor) -> Tensor:
    return other if mask is None else mask & other
