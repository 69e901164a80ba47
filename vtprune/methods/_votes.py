"""Page rank over attention: every token passes its votes on to what it attends to, again and again."""

from __future__ import annotations

from torch import Tensor

from vtprune.kernels import attention_column_mass, attention_scores


def pass_votes(
    votes: Tensor,
    queries: Tensor,
    keys: Tensor,
    iterations: int,
    *,
    scale: float,
    causal: bool = False,
    valid: Tensor | None = None,
    asking: Tensor | None = None,
) -> Tensor:
    """Votes that each token ends up with, in every head by itself; no attention matrix is stored.

    Votes for keys of earlier calls, that come before those of the queries, are lost.

    Args:
        votes: (rows, heads, slots) at first.
        queries: (rows, heads, slots, head_dim).
        keys: (rows, kv_heads, earlier + slots, head_dim).
        iterations: How often votes are passed on.
        scale: Factor on the products of queries and keys.
        causal: Whether tokens see none behind themselves.
        valid: bool, (rows, earlier + slots), False for what nobody votes for; None for none.
        asking: bool, (rows, slots), False for what does not vote; None for none.

    Returns:
        (rows, heads, slots), float32.
    """
    rows, heads, slots = votes.shape
    shared = heads // keys.shape[1]
    # Heads have votes of their own, so each is a row.
    q = queries.detach().float().flatten(0, 1).unsqueeze(1)
    k = keys.detach().float().repeat_interleave(shared, 1).flatten(0, 1).unsqueeze(1)
    valid, asking = (None if x is None else x.repeat_interleave(heads, 0) for x in (valid, asking))
    _, lse = attention_column_mass(q, k, scale=scale, causal=causal, key_valid=valid, row_mask=asking, return_lse=True)
    votes = votes.flatten(0, 1).float()
    for _ in range(iterations):
        votes = attention_scores(
            q,
            k,
            scale=scale,
            causal=causal,
            key_valid=valid,
            row_mask=asking,
            lse=lse,
            reduce_rows="sum",
            row_weights=votes,
        )[:, -slots:]
    return votes.unflatten(0, (rows, heads))
