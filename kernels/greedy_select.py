"""Greedy selection of a diverse subset: each pick is the token farthest from those already picked."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vtprune.kernels._shared import check_shape, first_argmax, full_precision, unit_rows


def farthest_points_reference(
    features: Tensor,
    count: int,
    *,
    first: Literal["nearest_neighbour", "mean"] | Tensor = "nearest_neighbour",
    objective: Literal["maxmin", "maxsum"] = "maxmin",
    valid: Tensor | None = None,
    block: int = 256,
) -> Tensor:
    """Pick `count` tokens of each picture, one after the other, as far apart as possible.

    The distance is 1 - cosine, in float32 whatever the type of `features`; a zero row has distance 1 to every other.
    A token is picked once. Among equal distances the lowest index wins.

    Args:
        features: (pictures, tokens, channels).
        count: Number of picks; more than there are tokens picks all of them.
        first: How the first token is chosen: the one whose nearest neighbour is farthest away, the one farthest from
            the mean direction, or given by its index (pictures,).
        objective: What the next pick maximises: its distance to the nearest picked token (k-center), or the sum of its
            distances to all picked tokens.
        valid: bool, (pictures, tokens), True for the tokens that may be picked; the others have no influence.
        block: Rows per step of the search for nearest neighbours.

    Returns:
        (pictures, min(count, tokens)) int64 in the order of picking; -1 where a picture has too few valid tokens.
    """
    check_shape("features", features, "pictures", "tokens", "channels")
    if objective not in ("maxmin", "maxsum"):
        raise ValueError(f"objective must be 'maxmin' or 'maxsum', got {objective!r}.")
    pictures, tokens, _ = features.shape
    count = min(count, tokens)
    unit = unit_rows(features)
    score = _first_scores(unit, first, valid, block)
    gain = torch.full_like(score, torch.inf if objective == "maxmin" else 0.0)
    if valid is not None:
        score = score.masked_fill(~valid, -torch.inf)
        gain.masked_fill_(~valid, -torch.inf)
    picks = torch.empty((pictures, count), dtype=torch.int64, device=features.device)
    batch = torch.arange(pictures, device=features.device)
    products, distance = torch.empty_like(unit), torch.empty_like(score)
    for step in range(count):
        best, pick = first_argmax(score)
        picks[:, step] = pick.masked_fill(best == -torch.inf, -1)
        # Products summed row by row: equal rows get equal distances to the last bit, alone and in a batch, and that is
        # what ties are decided on. A matrix product rounds its border rows differently.
        torch.mul(unit, unit[batch, pick].unsqueeze(1), out=products)
        torch.sum(products, -1, out=distance)
        distance.neg_().add_(1.0)
        if objective == "maxmin":
            torch.minimum(gain, distance, out=gain)
        else:
            gain += distance
        # Minus infinity survives both updates: a picked token never comes back, not even among duplicates.
        gain.scatter_(1, pick.unsqueeze(1), -torch.inf)
        score = gain
    return picks


def _first_scores(unit: Tensor, first: str | Tensor, valid: Tensor | None, block: int) -> Tensor:
    """(pictures, tokens): the first pick is the token with the highest score."""
    pictures, tokens, _ = unit.shape
    if isinstance(first, Tensor):
        return (torch.arange(tokens, device=unit.device) == first.unsqueeze(1)).float()
    if first == "mean":
        counted = unit if valid is None else unit * valid.unsqueeze(-1)
        return 1.0 - (unit * unit_rows(counted.sum(1, keepdim=True))).sum(-1)
    if first != "nearest_neighbour":
        raise ValueError(f"first must be 'nearest_neighbour', 'mean' or a tensor of indices, got {first!r}.")
    scores = torch.empty((pictures, tokens), dtype=torch.float32, device=unit.device)
    batch = torch.arange(pictures, device=unit.device).unsqueeze(1)
    for start in range(0, tokens, block):
        rows = slice(start, min(start + block, tokens))
        with full_precision(unit):
            similarity = unit[:, rows] @ unit.transpose(1, 2)  # (pictures, block, tokens)
        similarity.diagonal(start, 1, 2).fill_(-torch.inf)
        if valid is not None:
            similarity.masked_fill_(~valid.unsqueeze(1), -torch.inf)
        # Two tokens that are each other's nearest neighbour tie exactly: their distance is computed again in a way that
        # does not depend on which of them comes first.
        scores[:, rows] = 1.0 - (unit[:, rows] * unit[batch, similarity.argmax(-1)]).sum(-1)
    return scores


farthest_points = farthest_points_reference
