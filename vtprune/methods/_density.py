"""Clustering by density peaks among nearest neighbours (DPC-KNN): centres are dense and far from anything denser."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.kernels import compact_index, gather_rows
from vtprune.methods._select import top_k_mask

PAIRS = 1 << 25
"""Distances that are held at once; rows are clustered in as many portions as this takes."""


def density_clusters(x: Tensor, valid: Tensor, counts: Tensor, neighbours: int, width: int) -> Tensor:
    """Cluster the tokens of every row.

    Costs width**2 distances per row, in the channels of x. Of equal scores the lower index wins.

    Args:
        x: (rows, tokens, channels).
        valid: bool, (rows, tokens), the tokens to be clustered; the others have no influence.
        counts: (rows,), number of centres, at least 1.
        neighbours: How many nearest neighbours say how dense it is around a token, itself among them; no more than
            there are centres.
        width: The largest number of valid tokens in a row.

    Returns:
        (rows, tokens) int64: for every valid token its centre, which is itself for centres and for all others.
    """
    owner = torch.arange(x.shape[1], device=x.device).repeat(len(x), 1)
    portion = max(1, PAIRS // max(width * width, 1))
    for start in range(0, len(x), portion):
        part = slice(start, start + portion)
        index, there = compact_index(valid[part], width=width, padded=True)
        if there is None:
            there = torch.ones_like(index, dtype=torch.bool)
        distance = distances(gather_rows(x[part].detach().float(), index), there)
        centres = top_k_mask(peaks(distance, counts[part], neighbours, there), counts[part], there)
        # Padding repeats token 0: it writes what stands there already.
        nearest = distance.masked_fill(~centres.unsqueeze(1), torch.inf).argmin(-1)
        nearest = torch.where(centres, torch.arange(width, device=x.device), nearest)
        found = index.gather(1, nearest)
        owner[part] = _put(owner[part], index, found, there)
    return owner


def _put(owner: Tensor, index: Tensor, found: Tensor, there: Tensor) -> Tensor:
    """Write `found` at `index`, but not where `there` is False."""
    spare = owner.shape[1]
    wider = torch.cat((owner, owner[:, :1]), 1)
    return wider.scatter(1, torch.where(there, index, spare), found)[:, :spare]


def distances(x: Tensor, valid: Tensor) -> Tensor:
    """Euclidean distances over the root of the channels, (rows, tokens, tokens); infinite where one is not valid.

    By products in float64, so that equal tokens have the distance 0 and equal distances tie in float32.
    """
    precise = torch.float32 if x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    x = x.to(precise)
    lengths = x.square().sum(-1)
    both = lengths.unsqueeze(1) + lengths.unsqueeze(2)
    squares = torch.baddbmm(both, x, x.transpose(1, 2), alpha=-2)
    squares = squares.masked_fill(squares < 1e3 * torch.finfo(precise).eps * both, 0)
    found = (squares / x.shape[-1]).sqrt().float()
    return found.masked_fill(~(valid.unsqueeze(1) & valid.unsqueeze(2)), torch.inf)


def peaks(distance: Tensor, counts: Tensor, neighbours: int, valid: Tensor) -> Tensor:
    """Density times the distance to the nearest denser token, or to the farthest pair if none is denser.

    Of equally dense tokens each lower index counts as denser.

    Args:
        distance: (rows, tokens, tokens), infinite where one of the two is not valid.
        counts: (rows,), number of centres; no more neighbours are looked at.
        neighbours: Number of neighbours.
        valid: bool, (rows, tokens).
    """
    most = min(neighbours, distance.shape[-1])
    nearest = distance.topk(most, dim=-1, largest=False).values.square()
    seen = counts.clamp(1, most)[:, None, None]
    wanted = torch.arange(most, device=distance.device) < seen
    density = (-nearest.masked_fill(~wanted, 0).sum(-1) / seen.squeeze(-1)).exp()
    density = density.masked_fill(~valid, -1)
    farthest = distance.masked_fill(distance.isinf(), 0).amax((1, 2))[:, None, None]
    denser = density.unsqueeze(1) > density.unsqueeze(2)
    # Mutual nearest neighbours are equally dense as a rule, not by chance: the first of them counts as denser.
    denser = denser | (density.unsqueeze(1) == density.unsqueeze(2)).tril(-1)
    return density * torch.where(denser, distance, farthest).amin(-1)
