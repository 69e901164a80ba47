"""Where the energy of a feature map lies: its spectrum, and the block of low frequencies that holds most of it."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from vtprune.kernels._shared import first_argmax, full_precision

ROUNDING = 1e-6
"""Share of a map's energy below which nothing varies: what float32 leaves of a constant."""


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # a cached inference tensor would be of no use in training
def cosine_basis(length: int) -> Tensor:
    """(frequencies, length) float32 on the CPU: the orthonormal cosine transform (DCT-II)."""
    frequency = torch.arange(length, dtype=torch.float64)[:, None]
    basis = (math.pi / (2 * length) * frequency * (2 * torch.arange(length) + 1)).cos() * math.sqrt(2 / length)
    basis[0] /= math.sqrt(2)
    return basis.float()


def energies(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Energy of every frequency of maps (pictures, rows * columns, channels): float32, (pictures, rows, columns).

    Summed over channels; all of them together are the energy of the map.
    """
    down, across = (cosine_basis(side).to(features.device) for side in grid)
    maps = features.detach().float().unflatten(1, grid)  # (pictures, rows, columns, channels)
    with full_precision(maps):
        maps = (across @ maps).transpose(1, 2)
        maps = (down @ maps).transpose(1, 2)
    return maps.square().sum(-1)


def strongest_blocks(energy: Tensor, most: int, share: float = 1.0) -> Tensor:
    """Rows and columns of the block of low frequencies to keep of every map, (pictures, 2).

    Of the blocks with at most `most` cells that hold `share` of what varies, the one with fewest cells; where none
    does, the one that holds most. What the constant part holds, which is in every block, does not count. Of equals
    the one that holds more, then that of fewer cells, then of fewer rows.

    Args:
        energy: (pictures, rows, columns), see `energies`.
        most: At least 1.
        share: In (0, 1].
    """
    rows, columns = energy.shape[1:]
    varying = energy.clone()
    varying[:, 0, 0] = 0
    held = varying.cumsum(1).cumsum(2)  # of the block that ends at a row and a column
    least = share * held[:, -1:, -1:] - ROUNDING * energy.sum((1, 2))[:, None, None]
    sides = [torch.arange(1, side + 1, device=energy.device) for side in (rows, columns)]
    cells = (sides[0][:, None] * sides[1]).expand_as(held)
    allowed = cells <= most
    enough = allowed & (held >= least)
    found = enough.flatten(1).any(1)[:, None, None]
    fewest = cells.masked_fill(~enough, rows * columns + 1).amin((1, 2), keepdim=True)
    highest = held.masked_fill(~allowed, -torch.inf).amax((1, 2), keepdim=True)
    chosen = torch.where(found, enough & (cells == fewest), allowed & (held == highest))
    worth = torch.where(found, held, -cells.to(held.dtype)).masked_fill(~chosen, -torch.inf)
    _, index = first_argmax(worth.flatten(1))
    return torch.stack((index // columns + 1, index % columns + 1), 1)
