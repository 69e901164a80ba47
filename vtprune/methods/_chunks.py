"""Frequency chunks of rotary embeddings: the planes of two dimensions that are turned together.

A logit is the sum of what its chunks contribute, since rotation keeps to the planes. Dimension i is paired with
i + dim / 2 (halves, as in Llama and Qwen), not with its neighbour. A few chunks often rank entries as all of them do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.methods._strongest import strongest


def dimensions(chunks: Tensor, dim: int) -> Tensor:
    """The dimensions of chunks: (..., n) -> (..., 2 n), first halves first."""
    return torch.cat((chunks, chunks + dim // 2), -1)


def of_chunks(x: Tensor, chunks: Tensor) -> Tensor:
    """The dimensions that belong to chunks, side by side in memory.

    Args:
        x: Queries (rows, heads, n, dim), or keys (rows, kv_heads, n, dim).
        chunks: (rows or 1, kv_heads, c), those of each key-value head; its query heads share them.

    Returns:
        (rows, heads or kv_heads, n, 2 c).
    """
    rows, heads, n, dim = x.shape
    index = dimensions(chunks, dim).repeat_interleave(heads // chunks.shape[1], 1)
    return x.gather(3, index[:, :, None].expand(rows, -1, n, -1))


def chunk_logits(queries: Tensor, keys: Tensor, chunk: int) -> Tensor:
    """What one chunk contributes to the unscaled logits, (rows, heads, n, entries), float32.

    Args:
        queries: (rows, heads, n, dim), rotated.
        keys: (rows, kv_heads, entries, dim), rotated.
        chunk: Its number, from 0 to dim / 2 - 1; its frequency falls with it.
    """
    planes = slice(chunk, None, queries.shape[-1] // 2)
    return _products(queries[..., planes], keys[..., planes])


def agreement(queries: Tensor, keys: Tensor, among: Tensor, counts: Tensor, most: int) -> Tensor:
    """Contextual agreement: which share of what queries want most each chunk finds by itself.

    Of a query, |best entries by the chunk, and by all| / count; then the mean over a group's heads and the queries.

    Args:
        queries: (rows, heads, n, dim), rotated.
        keys: (rows, kv_heads, entries, dim), rotated.
        among: Bool, (rows, n, entries), the entries that a query ranks; a query without any does not count. Sinks and
            near neighbours, on which all agree, should not be among them.
        counts: (rows,), how many are the best.
        most: The largest of these, known to the host.

    Returns:
        float32, (rows, kv_heads, chunks), in [0, 1]; 0 in rows where no query counts.
    """
    heads, dim = queries.shape[1], queries.shape[3]
    seen = among[:, None]
    wanted = torch.minimum(counts[:, None], among.sum(-1))[:, None]  # (rows, 1, n)
    best = strongest(_products(queries, keys), wanted, seen, most)
    shares = []
    for chunk in range(dim // 2):
        found = strongest(chunk_logits(queries, keys, chunk), wanted, seen, most)
        shares.append((found & best).sum(-1) / wanted.clamp_min(1))
    asking = (wanted > 0).sum(-1, keepdim=True).clamp_min(1)  # (rows, 1, 1)
    mean = torch.stack(shares, -1).sum(2) / asking  # (rows, heads, chunks)
    return mean.unflatten(1, (keys.shape[1], heads // keys.shape[1])).mean(2)


def dominant(agreement: Tensor, count: int) -> Tensor:
    """The chunks that agree most, (..., chunks) -> (..., count), ascending; of equal ones the lower number."""
    order = agreement.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(-1).values


def importance(queries: Tensor, keys: Tensor, scale: float, among: Tensor, sharpen: bool = True) -> Tensor:
    """What each entry promises to the queries, by some dimensions only; good for ranking, and for nothing else.

    Args:
        queries: (rows, heads, n, part of dim), see `of_chunks`.
        keys: (rows, kv_heads, entries, part of dim).
        scale: Factor on the products.
        among: Bool, (rows, n, entries), what each query ranks.
        sharpen: Softmax over the entries, head by head and query by query, before these are added up; else the scaled
            products themselves are added up.

    Returns:
        float32, (rows, kv_heads, entries), summed over queries and the heads of a group; 0 where nobody looks.
    """
    logits = _products(queries, keys) * scale
    hidden = ~among[:, None]
    if sharpen:
        logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(-1)
    logits = logits.masked_fill(hidden, 0).sum(2)
    return logits.unflatten(1, (keys.shape[1], -1)).sum(2)


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    """Products of queries (rows, heads, n, dim) and keys of their group, (rows, heads, n, entries), float32."""
    grouped = queries.float().unflatten(1, (keys.shape[1], -1))
    return torch.einsum("rhgqd,rhkd->rhgqk", grouped, keys.float()).flatten(1, 2)
