"""Smaller grids of a picture: which one fits a number of tokens, and which of its cells covers a token."""

from __future__ import annotations

import torch
from torch import Tensor


def fit_grid(target: float, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of the smaller grid of the same shape that has nearly `target` cells.

    Considered are the grids whose one side is chosen freely and whose other side is the exact proportion, rounded up
    or down. The number of cells nearest to `target` wins, then the shape nearest to the original, then fewer cells,
    then fewer rows.
    """
    grids = set()
    for h in range(1, rows + 1):
        grids |= {(h, max(1, w)) for w in (h * columns // rows, -(-h * columns // rows))}
    for w in range(1, columns + 1):
        grids |= {(max(1, h), w) for h in (w * rows // columns, -(-w * rows // columns))}
    return min(grids, key=lambda g: (abs(g[0] * g[1] - target), abs(g[0] * columns - g[1] * rows), g[0] * g[1], g[0]))


def cell_owner(frames: int, grid: tuple[int, int], small: tuple[int, int], left: int | None = None) -> Tensor:
    """(1, frames * rows * columns): for every old slot the index of the new cell that covers it, frame by frame.

    Args:
        frames: Number of frames.
        grid: Rows and columns of a frame.
        small: Those of a new one.
        left: Number of new frames; None: all.
    """
    down = torch.arange(grid[0]) * small[0] // grid[0]
    across = torch.arange(grid[1]) * small[1] // grid[1]
    cell = (down[:, None] * small[1] + across).flatten()
    frame = torch.arange(frames) * (left or frames) // frames
    return (frame[:, None] * (small[0] * small[1]) + cell).view(1, -1)
