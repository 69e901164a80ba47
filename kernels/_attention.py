"""What the attention operators share: their checks, and probabilities streamed in blocks that stay in the cache."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vtprune.kernels._shared import check_shape, full_precision

LOG2_E = math.log2(math.e)
# A block of logits is written once and read three times: it has to stay in the second-level cache of a core.
BLOCK_BYTES = 384 * 1024
# Logits (in base 2) below this need no maximum taken off: 2 ** 80 times a million keys is far from float32's limit,
# and 2 ** -80 is far from its smallest normal number.
SAFE_LOGIT = 80.0

# What the Triton kernels take: heads of which two tiles fit into shared memory, and as many packed sequences as every
# program can read the borders of.
MAX_HEAD_DIM = 256
MAX_SEQUENCES = 8192
# Programs along the second and third axis of a grid.
MAX_GRID = 65535


def check_queries_keys(q: Tensor, k: Tensor) -> None:
    """Refuse queries and keys that do not fit together.

    Raises:
        ValueError: Wrong number of axes, or batches, heads or head dimensions that do not match.
    """
    check_shape("q", q, "batch", "heads", "rows", "dim")
    check_shape("k", k, "batch", "kv_heads", "keys", "dim")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"q and k must have the same batch and dim, got the shapes {tuple(q.shape)} and {tuple(k.shape)}."
        )
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"heads of q must be a multiple of the heads of k, got {q.shape[1]} and {k.shape[1]}.")


def check_like(name: str, tensor: Tensor | None, shape: tuple[int, ...], kind: str) -> None:
    """Refuse a tensor of another shape or kind of dtype; None passes.

    Args:
        name: The argument's name.
        tensor: Its value.
        shape: What its shape must be.
        kind: What its dtype must be: "bool", "int" or "float".

    Raises:
        ValueError: Wrong shape.
        TypeError: Wrong dtype.
    """
    if tensor is None:
        return
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {tuple(tensor.shape)}.")
    found = "float" if tensor.is_floating_point() else "bool" if tensor.dtype == torch.bool else "int"
    if found != kind:
        raise TypeError(f"{name} must hold {kind}s, got {tensor.dtype}.")


def check_borders(batch: int, **borders: Tensor | None) -> None:
    """Refuse what cannot be the borders of packed sequences. Values are not read: they are on the GPU.

    Raises:
        ValueError: Not vectors of at least two integers, not all or none of them, not equally long, or a batch that is
            not 1.
    """
    given = {name: x for name, x in borders.items() if x is not None}
    if not given:
        return
    if len(given) < len(borders):
        raise ValueError(f"{' and '.join(borders)} must be given together, got {', '.join(given)} only.")
    for name, x in given.items():
        if x.ndim != 1 or len(x) < 2 or x.is_floating_point() or x.dtype == torch.bool:
            raise ValueError(
                f"{name} must be an integer vector (sequences + 1,), got {x.dtype} of shape {tuple(x.shape)}."
            )
    if len({len(x) for x in given.values()}) > 1:
        raise ValueError(f"{' and '.join(given)} must be equally long, got {[len(x) for x in given.values()]}.")
    if batch != 1:
        raise ValueError(f"{next(iter(given))} needs a batch of 1, all sequences on one axis, got {batch}.")


def triton_refusal(*tensors: Tensor, borders: Tensor | None = None) -> str | None:
    """Why the attention kernels cannot take these queries, keys (and values); None if they can."""
    q = tensors[0]
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"q must be float16, bfloat16 or float32, got {q.dtype}"
    for other in tensors[1:]:
        if other.dtype != q.dtype:
            return f"q, k and v must have one dtype, got {q.dtype} and {other.dtype}"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"the head dimension must be at most {MAX_HEAD_DIM}, got {q.shape[-1]}"
    if q.shape[0] * q.shape[1] > MAX_GRID:
        return f"batch x heads must be at most {MAX_GRID}, got {q.shape[0] * q.shape[1]}"
    if borders is not None and len(borders) > MAX_SEQUENCES:
        return f"there must be fewer than {MAX_SEQUENCES} packed sequences, got {len(borders) - 1}"
    return None


def full_mask(mask: Tensor, batch: int, rows: int, keys: int) -> Tensor:
    """A dense mask with all four axes; that of heads may be 1.

    Raises:
        ValueError: It cannot be broadcast.
    """
    mask = mask[(None,) * (4 - mask.ndim)]
    try:
        return mask.expand(batch, -1, rows, keys)
    except RuntimeError:
        raise ValueError(
            f"mask must be broadcastable to (batch, heads, rows, keys) with batch {batch}, {rows} rows and {keys} "
            f"keys, got the shape {tuple(mask.shape)}."
        ) from None


def sequences(
    batch: int, rows: int, keys: int, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None
) -> Iterator[tuple[int, slice, slice]]:
    """Every sequence: its place in the batch, its rows and its keys."""
    if cu_seqlens_q is None or cu_seqlens_k is None:
        yield from ((i, slice(0, rows), slice(0, keys)) for i in range(batch))
        return
    borders = [list(itertools.pairwise(x.tolist())) for x in (cu_seqlens_q, cu_seqlens_k)]
    yield from ((0, slice(*in_q), slice(*in_k)) for in_q, in_k in zip(*borders, strict=True))


def last_keys(rows: int, keys: int, device: torch.device) -> Tensor:
    """The last key that each row sees where the rows are the last ones of a causal sequence: (rows,)."""
    return torch.arange(keys - rows, keys, device=device)


def rows_per_key(
    like: Tensor, row_mask: Tensor | None, rows: int, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None
) -> Tensor | int:
    """How many rows of its sequence count, for every key; at least 1; broadcastable to `like`, (batch, ..., keys)."""
    if cu_seqlens_q is None or cu_seqlens_k is None:
        if row_mask is None:
            return max(rows, 1)
        return row_mask.sum(1).clamp_min(1).view(-1, *[1] * (like.ndim - 1))
    counts = cu_seqlens_q.diff()
    if row_mask is not None:
        before = torch.nn.functional.pad(row_mask[0].cumsum(0), (1, 0))
        counts = before[cu_seqlens_q.long()].diff()
    # With the size given, the host need not read how long the sequences are.
    return counts.clamp_min(1).repeat_interleave(cu_seqlens_k.diff(), output_size=like.shape[-1])


@dataclasses.dataclass(frozen=True)
class Sight:
    """Which keys the rows of one sequence see; everything is optional.

    Attributes:
        last: int (rows,), the last key that each row sees.
        rising: Whether `last` goes up by one from row to row.
        valid: bool (keys,).
        mask: bool (1 or heads, 1 or rows, keys).
        rows: bool (rows,), rows that count; the others see nothing.
    """

    last: Tensor | None = None
    rising: bool = False
    valid: Tensor | None = None
    mask: Tensor | None = None
    rows: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Block:
    """Some rows of some heads: `factors * weights` are their probabilities.

    Attributes:
        kv_heads: Which heads of the keys; the block has all query heads that share them.
        rows: Which rows.
        weights: (kv_heads, group, rows, keys here), never negative; memory that the next block takes over. Keys beyond
            `keys here` are seen by none of the rows.
        factors: (kv_heads, group, rows, 1); 0 for rows that do not count or see nothing.
        lse: (kv_heads, group, rows), natural log-sum-exp of the logits, -inf for rows that do not count or see nothing;
            None if it was not asked for.
    """

    kv_heads: slice
    rows: slice
    weights: Tensor
    factors: Tensor
    lse: Tensor | None


def probability_blocks(
    q: Tensor,
    k: Tensor,
    scale: float,
    sight: Sight,
    *,
    lse: Tensor | None = None,
    want_lse: bool = False,
    all_heads: bool = False,
    block: int | None = None,
) -> Iterator[Block]:
    """Attention probabilities of one sequence, block by block, in float32.

    Args:
        q: (heads, rows, dim).
        k: (kv_heads, keys, dim).
        scale: Factor on the logits.
        sight: Which keys the rows see.
        lse: (heads, rows), the log-sum-exp if it is known.
        want_lse: Whether blocks carry it.
        all_heads: Whether every block must have all heads.
        block: Rows per block; None: as many as fit the cache.
    """
    (heads, rows, dim), (kv_heads, keys, _) = q.shape, k.shape
    group = heads // kv_heads
    if not rows or not keys:
        return
    q = q.reshape(kv_heads, group, rows, dim)
    room = max(BLOCK_BYTES * max(torch.get_num_threads(), 1) // (4 * keys), 1)  # rows of logits
    heads_per = kv_heads if all_heads else min(max(room // (group * rows), 1), kv_heads)
    rows_per = block or min(max(room // (group * heads_per), -(-16 // group)), 128)
    buffer = q.new_empty(heads_per * group * min(rows_per, rows) * keys, dtype=torch.float32)
    for first in range(0, kv_heads, heads_per):
        some = slice(first, min(first + heads_per, kv_heads))
        queries = q[some].float() * (scale * LOG2_E)
        transposed = k[some].float().transpose(1, 2)
        safe = lse is None and _logits_are_safe(queries, transposed)
        known = None if lse is None else lse.view(kv_heads, group, rows)[some]
        for start in range(0, rows, rows_per):
            here = slice(start, min(start + rows_per, rows))
            yield _block(queries, transposed, some, here, sight, safe, known, want_lse, buffer)


def _logits_are_safe(queries: Tensor, transposed: Tensor) -> bool:
    # A bound on every logit by the lengths of queries and keys. It has to be cheap beside the logits, and to be read.
    if queries.device.type != "cpu" or queries.shape[1] * queries.shape[2] < queries.shape[3]:
        return False
    return bool(queries.norm(dim=-1).amax() * transposed.norm(dim=1).amax() < SAFE_LOGIT)


def _block(
    queries: Tensor,
    transposed: Tensor,
    kv_heads: slice,
    rows: slice,
    sight: Sight,
    safe: bool,
    known: Tensor | None,
    want_lse: bool,
    buffer: Tensor,
) -> Block:
    q = queries[:, :, rows]
    (count, group, length, dim), keys = q.shape, transposed.shape[2]
    if sight.rising and sight.last is not None:  # row r of n sees the first keys - n + r + 1
        keys = max(min(keys, transposed.shape[2] - queries.shape[2] + rows.stop), 1)
        transposed = transposed[:, :, :keys]
    weights = buffer[: count * group * length * keys].view(count, group * length, keys)
    with full_precision(q):
        torch.bmm(q.reshape(count, group * length, dim), transposed, out=weights)
    weights = weights.view(count, group, length, keys)
    _hide(weights, kv_heads, rows, sight)
    lse: Tensor | None
    if known is not None:
        known = known[:, :, rows, None].float() * LOG2_E
        nothing = known == -torch.inf
        if sight.rows is not None:
            nothing |= ~sight.rows[rows, None]
        torch.exp2(weights.sub_(known.masked_fill(nothing, torch.inf)), out=weights)
        factors = torch.ones_like(known).masked_fill_(nothing, 0.0)
        lse = known / LOG2_E
    else:
        top = None
        if not safe:
            top = weights.amax(-1, keepdim=True)
            top = top.masked_fill_(top == -torch.inf, 0.0)
            weights.sub_(top)
        total = torch.exp2(weights, out=weights).sum(-1, keepdim=True)
        factors = total.reciprocal().masked_fill_(total == 0, 0.0)
        lse = (total.log2() if top is None else total.log2().add_(top)) / LOG2_E if want_lse else None
    return Block(kv_heads, rows, weights, factors, None if lse is None else lse.squeeze(-1))


def column_sums(part: Block, target: Tensor, row_weights: Tensor | None, join_heads: bool) -> None:
    """Add the probabilities that the rows of a block give each key to `target`, (keys,) or (heads, keys)."""
    factors = part.factors if row_weights is None else part.factors * row_weights
    count, group, _, keys = part.weights.shape
    if join_heads:
        # One matrix-vector product instead of normalising the block and then adding up its rows.
        target[:keys].addmv_(part.weights.view(-1, keys).t(), factors.reshape(-1))
    else:
        with full_precision(factors):
            sums = factors.transpose(-1, -2) @ part.weights
        target[part.kv_heads.start * group : part.kv_heads.stop * group, :keys] += sums.view(count * group, keys)


def _hide(logits: Tensor, kv_heads: slice, rows: slice, sight: Sight) -> None:
    """Set what rows do not see to -inf."""
    _, group, _, keys = logits.shape
    if sight.rows is not None:
        logits.masked_fill_(~sight.rows[rows, None], -torch.inf)
    if sight.valid is not None:
        logits.masked_fill_(~sight.valid[:keys], -torch.inf)
    if sight.last is not None:
        first = max(keys - (rows.stop - rows.start), 0) if sight.rising else 0  # all rows see what lies before
        numbers = torch.arange(first, keys, device=logits.device)
        logits[..., first:].masked_fill_(numbers > sight.last[rows, None], -torch.inf)
    if sight.mask is not None:
        mask = sight.mask if sight.mask.shape[1] == 1 else sight.mask[:, rows]
        if mask.shape[0] > 1:
            mask = mask.unflatten(0, (-1, group))[kv_heads]
        logits.masked_fill_(~mask[..., :keys], -torch.inf)
