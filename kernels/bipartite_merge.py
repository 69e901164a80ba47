"""Token merging: match similar tokens in two halves, describe the match by an owner map, average the groups."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vtprune.kernels._cosine import NOBODY, live_unit_rows
from vtprune.kernels._dispatch import runs_on_triton
from vtprune.kernels._shared import check_shape, first_argmax, full_precision
from vtprune.kernels.ragged_compact import gather_rows


class Matching(NamedTuple):
    """Which tokens merge. Set A holds the tokens at even places 0, 2, 4, ..., set B those at odd places 1, 3, 5, ...

    Attributes:
        sources: (pictures, merges), indices into A of the tokens that merge, most similar pair first.
        destinations: (pictures, merges), index into B of the partner of each source; several may share one.
        unmerged: (pictures, |A| - merges), indices into A of the tokens that stay alone, most similar first, or
            ascending where tokens are protected.
    """

    sources: Tensor
    destinations: Tensor
    unmerged: Tensor


def bipartite_matching(keys: Tensor, merges: int, *, protected: int = 0) -> Matching:
    """Match every token of A with its most similar token of B (cosine, float32) and take the best `merges` pairs.

    The matching of ToMe (arXiv 2210.09461). Equal similarities: the lower index wins, for partners and for sources.
    Tokens whose keys are not finite (NaN, infinite, or so large that their squares overflow float32) are partners of
    nobody and merge last; the reference and the Triton kernel differ by rounding, near 1e-7.

    Args:
        keys: (pictures, tokens, channels), what similarity is measured on.
        merges: Number of pairs; at most half of the unprotected tokens, more is cut to that.
        protected: 0, 1 (token 0, the class token, never merges) or 2 (also token 1, a distillation token).

    Raises:
        ValueError: `keys` has other axes, or `protected` is none of these.
    """
    check_shape("keys", keys, "pictures", "tokens", "channels")
    if keys.numel() and keys.shape[1] > 1 and runs_on_triton("bipartite_matching", None, keys):
        from vtprune.kernels.bipartite_merge_triton import bipartite_matching_triton

        return _match(keys, merges, protected, bipartite_matching_triton)
    return bipartite_matching_reference(keys, merges, protected=protected)


def bipartite_matching_reference(keys: Tensor, merges: int, *, protected: int = 0, block: int = 2048) -> Matching:
    """`bipartite_matching` in torch, by `block` rows of A at a time."""
    return _match(keys, merges, protected, partial(_nearest_in_b, block=block))


def _match(keys: Tensor, merges: int, protected: int, nearest: Callable[..., tuple[Tensor, Tensor]]) -> Matching:
    """The matching, given the search for the nearest token of B."""
    check_shape("keys", keys, "pictures", "tokens", "channels")
    if protected not in (0, 1, 2):
        raise ValueError(f"protected must be 0, 1 or 2, got {protected!r}.")
    pictures, tokens, _ = keys.shape
    merges = max(0, min(merges, (tokens - protected) // 2))
    if tokens < 2:
        nothing = torch.zeros((pictures, 0), dtype=torch.int64, device=keys.device)
        everything = torch.arange(tokens, device=keys.device).expand(pictures, -1)
        return Matching(nothing, nothing, everything)
    unit, live = live_unit_rows(keys, None)
    likeness, partners = nearest(unit, live, barred=1 if protected == 2 else 0)
    likeness = likeness.masked_fill(~live[:, ::2], NOBODY)
    if protected:
        likeness[:, 0] = -torch.inf
    order = likeness.argsort(dim=1, descending=True, stable=True)
    sources, unmerged = order[:, :merges], order[:, merges:]
    if protected:
        unmerged = unmerged.sort(dim=1).values
    return Matching(sources, partners.gather(1, sources), unmerged)


def _nearest_in_b(unit: Tensor, live: Tensor, *, barred: int, block: int) -> tuple[Tensor, Tensor]:
    """Nearest token of B for every token of A.

    Args:
        unit: (pictures, tokens, channels), unit rows.
        live: bool, (pictures, tokens): no other token of B is anyone's nearest, as long as there is one.
        barred: So many first tokens of B are nobody's nearest.
        block: Rows of A per step.

    Returns:
        Similarity, float32, and index into B, int64: both (pictures, |A|).
    """
    a, b = unit[:, ::2], unit[:, 1::2].transpose(1, 2)
    dead = None if bool(live.all()) else ~live[:, None, 1::2]
    best, partner = [], []
    for start in range(0, a.shape[1], block):
        with full_precision(a):
            similarity = a[:, start : start + block] @ b  # (pictures, block, |B|)
        if dead is not None:
            similarity.masked_fill_(dead, NOBODY)
        similarity[:, :, :barred] = -torch.inf
        best_here, partner_here = first_argmax(similarity)
        best.append(best_here)
        partner.append(partner_here)
    return torch.cat(best, 1), torch.cat(partner, 1)


def owner_map(matching: Matching, tokens: int, *, protected: int = 0) -> tuple[Tensor, int]:
    """Owner map of a matching: (pictures, tokens), for every token the index of its group; and the number of groups.

    Order of the groups: unmerged tokens of A as listed, then all of B. With two protected tokens: token 0, token 1,
    the other unmerged tokens of A, the rest of B.
    """
    sources, destinations, unmerged = matching
    pictures, alone = unmerged.shape
    device = unmerged.device
    group_of_a = torch.empty((pictures, (tokens + 1) // 2), dtype=torch.int64, device=device)
    group_of_b = torch.arange(alone, alone + tokens // 2, device=device).expand(pictures, -1)
    group_of_unmerged = torch.arange(alone, device=device).expand(pictures, -1)
    if protected == 2:
        # B's first token, the distillation token, moves to place 1; A's unmerged tokens after the first make room.
        group_of_unmerged = group_of_unmerged + (group_of_unmerged > 0)
        group_of_b = torch.where(group_of_b == alone, 1, group_of_b)
    group_of_a.scatter_(1, unmerged, group_of_unmerged)
    group_of_a.scatter_(1, sources, group_of_b.gather(1, destinations))
    owner = torch.empty((pictures, tokens), dtype=torch.int64, device=device)
    owner[:, ::2] = group_of_a
    owner[:, 1::2] = group_of_b
    return owner, tokens - sources.shape[1]


def merge_by_owner(x: Tensor, owner: Tensor, groups: int, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Average the tokens of each group, weighted by how many patches each token stands for.

    Sums are float32. The Triton kernel adds up in the order of the tokens and is deterministic. NaN stays in its group.

    Args:
        x: (pictures, tokens, channels).
        owner: (pictures, tokens) int64, index of each token's group.
        groups: Number of groups; one without tokens gets zeros and size 0.
        sizes: (pictures, tokens), all 1 if None.

    Returns:
        (pictures, groups, channels) in the type of `x`, and the float32 sizes (pictures, groups).

    Raises:
        ValueError: `x`, `owner` or `sizes` has another shape.
    """
    check_shape("x", x, "pictures", "tokens", "channels")
    for name, tensor in (("owner", owner), ("sizes", sizes)):
        if tensor is not None and tensor.shape != x.shape[:2]:
            raise ValueError(f"{name} must have the shape {tuple(x.shape[:2])}, got {tuple(tensor.shape)}.")
    unsupported = "it has no backward pass" if x.requires_grad and torch.is_grad_enabled() else None
    if x.numel() and groups and runs_on_triton("merge_by_owner", unsupported, x, owner, sizes):
        from vtprune.kernels.bipartite_merge_triton import merge_by_owner_triton

        return merge_by_owner_triton(x, owner, groups, sizes)
    return merge_by_owner_reference(x, owner, groups, sizes)


def merge_by_owner_reference(
    x: Tensor, owner: Tensor, groups: int, sizes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`merge_by_owner` in torch; on GPUs, the order of its sums may change from run to run."""
    check_shape("x", x, "pictures", "tokens", "channels")
    pictures, tokens, channels = x.shape
    weights = x.new_ones((pictures, tokens), dtype=torch.float32) if sizes is None else sizes.float()
    merged_sizes = weights.new_zeros((pictures, groups)).scatter_add_(1, owner, weights)
    index = owner + torch.arange(pictures, device=x.device).unsqueeze(1) * groups
    merged = weights.new_zeros((pictures * groups, channels))
    merged.index_add_(0, index.flatten(), (x.float() * weights.unsqueeze(-1)).flatten(0, 1))
    merged = merged.view(pictures, groups, channels)
    merged /= merged_sizes.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
    return merged.to(x.dtype), merged_sizes


def unmerge(x: Tensor, owner: Tensor) -> Tensor:
    """Give every token its group's row: (pictures, groups, channels) -> (pictures, tokens, channels)."""
    return gather_rows(x, owner)
