"""Cosine similarities of the tokens of a picture: unit rows, all pairs, nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.kernels._shared import full_precision

BLOCK = 256
# Below every cosine: stands where a token must not be its own neighbour, nor a dead token anyone's.
NOBODY = -2.0


def live_unit_rows(features: Tensor, live: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of length 1 in float32, and which of them count.

    A token is dead if `live` says so, or if the length of its row is no finite number. Dead rows are zero.

    Args:
        features: (pictures, tokens, channels).
        live: bool, (pictures, tokens); all if None.

    Returns:
        (pictures, tokens, channels), zero rows stay zero; and bool, (pictures, tokens).
    """
    x = features.detach().float()
    length = torch.linalg.vector_norm(x, dim=-1)
    finite = length.isfinite()
    live = finite if live is None else live & finite
    return scale_rows(x, length, live), live


def scale_rows(x: Tensor, length: Tensor, live: Tensor) -> Tensor:
    """Divide rows by their lengths; zero rows stay zero, dead rows become zero."""
    unit = (x / length.clamp_min(torch.finfo(x.dtype).tiny).unsqueeze(-1)).contiguous()
    if x.device.type == "cpu" and bool(live.all()):
        return unit
    return unit.masked_fill_(~live.unsqueeze(-1), 0.0)


def float32_error(channels: int) -> float:
    """Bound on the error of a float32 cosine, whatever the order of summation.

    The exact bound grows with `channels`, real errors at most with its root. This is two to four times the largest
    error among 2 million cosines of random, positive and nearly parallel rows (64 channels: 6e-7, 4,096: 1e-6).
    """
    return (12.0 + channels**0.5) * torch.finfo(torch.float32).eps / 2


def all_pairs(unit: Tensor, live: Tensor, *, matrix: bool, nearest: bool) -> tuple[Tensor | None, Tensor | None]:
    """Similarities of all pairs, each computed once: the matrix is symmetric to the last bit.

    Args:
        unit: (pictures, tokens, channels).
        live: bool, (pictures, tokens).
        matrix: Whether the whole matrix is wanted, (pictures, tokens, tokens); its diagonal is `NOBODY`.
        nearest: Whether the similarity to the nearest live neighbour is wanted, (pictures, tokens); `NOBODY` if there
            is none.
    """
    pictures, tokens, _ = unit.shape
    pairs = unit.new_empty((pictures, tokens, tokens)) if matrix else None
    closest = unit.new_full((pictures, tokens), NOBODY) if nearest else None
    with full_precision(unit):
        for p in range(pictures):
            dead = None if closest is None or bool(live[p].all()) else ~live[p]
            for start in range(0, tokens, BLOCK):
                end = min(start + BLOCK, tokens)
                rows, columns = unit[p, start:end], unit[p, start:].T
                out = None if pairs is None else pairs[p, start:end, start:]
                part = torch.mm(rows, columns, out=out)
                part.diagonal().fill_(NOBODY)
                if dead is not None:
                    part.masked_fill_(dead[start:], NOBODY).masked_fill_(dead[start:end, None], NOBODY)
                if pairs is not None and end < tokens:
                    pairs[p, end:, start:end].copy_(part[:, end - start :].T)
                if closest is not None:
                    here, behind = closest[p, start:end], closest[p, end:]
                    torch.maximum(here, part.amax(1), out=here)
                    torch.maximum(behind, part[:, end - start :].amax(0), out=behind)
    return pairs, closest
