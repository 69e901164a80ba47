"""Frames of videos: which token belongs to which frame, for methods that compare or weigh them."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.methods.base import Pictures


def frames_of(pictures: Pictures, method: str) -> int:
    """Number of frames; all have the same number of tokens, in raster order. A picture, tiled or not, is one frame.

    Raises:
        ValueError: Tokens of a video were removed or merged before.
    """
    if pictures.grid is not None:
        return pictures.grid[0]
    if pictures.cells is not None and bool((pictures.cells.frame > 0).any()):
        raise ValueError(
            f"method {method!r} compares whole frames, but tokens of this video were removed or merged before; put "
            f"{method!r} first."
        )
    return 1


def frame_numbers(pictures: Pictures) -> tuple[Tensor, int]:
    """Number of each token's frame, (pictures, tokens), and how many there are; every tile counts as a frame.

    Works on what earlier methods left, too: frames may then have different numbers of tokens, or none.
    """
    if pictures.grid is not None:
        frames, rows, columns = pictures.grid
        number = torch.arange(frames, device=pictures.encoded.device).repeat_interleave(rows * columns)
        return number.expand(len(pictures.encoded), -1), frames
    if pictures.cells is None:
        return torch.zeros(pictures.encoded.shape[:2], dtype=torch.int64, device=pictures.encoded.device), 1
    tile, frame = pictures.cells.tile, pictures.cells.frame
    tiles = int(tile.max()) + 1
    return frame * tiles + tile, tiles * (int(frame.max()) + 1)


def frame_top_k_mask(scores: Tensor, number: Tensor, counts: Tensor) -> Tensor:
    """Mark the highest scores of every frame; among equal scores the lower index wins.

    Args:
        scores: (pictures, tokens).
        number: (pictures, tokens), the frame of each token.
        counts: (pictures, frames), how many to mark.

    Returns:
        bool, (pictures, tokens).
    """
    order = scores.detach().argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, number.gather(1, order).argsort(dim=1, stable=True))  # frame by frame, best first
    sorted_number = number.gather(1, order)
    sizes = torch.zeros_like(counts).scatter_add_(1, number, torch.ones_like(number))
    starts = sizes.cumsum(1) - sizes
    rank = torch.arange(scores.shape[1], device=scores.device) - starts.gather(1, sorted_number)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, rank < counts.gather(1, sorted_number))
