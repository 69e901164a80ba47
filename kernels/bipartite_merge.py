"""Token merging: match similar tokens in two halves, describe the match by an owner map, average the groups."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vtprune.kernels._shared import check_shape, first_argmax, full_precision, unit_rows
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


def bipartite_matching_reference(keys: Tensor, merges: int, *, protected: int = 0, block: int = 2048) -> Matching:
    """Match every token of A with its most similar token of B (cosine, float32) and take the best `merges` pairs.

    Equal similarities: the lower index wins, for partners and for sources.

    Args:
        keys: (pictures, tokens, channels), what similarity is measured on.
        merges: Number of pairs; at most half of the unprotected tokens, more is cut to that.
        protected: 0, 1 (token 0, the class token, never merges) or 2 (also token 1, a distillation token).
        block: Rows of A per step.
    """
    check_shape("keys", keys, "pictures", "tokens", "channels")
    if protected not in (0, 1, 2):
        raise ValueError(f"protected must be 0, 1 or 2, got {protected!r}.")
    merges = max(0, min(merges, (keys.shape[1] - protected) // 2))
    unit = unit_rows(keys)
    a, b = unit[:, ::2], unit[:, 1::2].transpose(1, 2)
    if b.shape[2] == 0:
        nothing = torch.zeros((keys.shape[0], 0), dtype=torch.int64, device=keys.device)
        everything = torch.arange(a.shape[1], device=keys.device).expand(keys.shape[0], -1)
        return Matching(nothing, nothing, everything)
    best, partner = [], []
    for start in range(0, a.shape[1], block):
        with full_precision(a):
            similarity = a[:, start : start + block] @ b  # (pictures, block, |B|)
        if protected == 2:
            similarity[:, :, 0] = -torch.inf
        best_here, partner_here = first_argmax(similarity)
        best.append(best_here)
        partner.append(partner_here)
    likeness, partners = torch.cat(best, 1), torch.cat(partner, 1)  # (pictures, |A|)
    if protected:
        likeness[:, 0] = -torch.inf
    order = likeness.argsort(dim=1, descending=True, stable=True)
    sources, unmerged = order[:, :merges], order[:, merges:]
    if protected:
        unmerged = unmerged.sort(dim=1).values
    return Matching(sources, partners.gather(1, sources), unmerged)


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


def merge_by_owner_reference(
    x: Tensor, owner: Tensor, groups: int, sizes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Average the tokens of each group, weighted by how many patches each token stands for.

    Sums are float32. On GPUs their order, and so the last bit, may change from run to run where three or more tokens
    meet.

    Args:
        x: (pictures, tokens, channels).
        owner: (pictures, tokens), index of each token's group.
        groups: Number of groups; one without tokens gets zeros and size 0.
        sizes: (pictures, tokens), all 1 if None.

    Returns:
        (pictures, groups, channels) in the type of `x`, and the float32 sizes (pictures, groups).
    """
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


bipartite_matching = bipartite_matching_reference
merge_by_owner = merge_by_owner_reference
