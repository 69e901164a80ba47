"""Tiled pictures: which tokens form the thumbnail, and which part of the picture each tile shows enlarged."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the tokens of a picture are divided; the same for all pictures of a batch.

    Args:
        thumbnail: (tokens of the thumbnail,), their indices, in raster order.
        side: Rows and columns of the thumbnail.
        crops: Per tile but the thumbnail, (tokens of the tile,), their indices, in raster order.
        grid: Rows and columns of tiles.
        canvas: Rows and columns of the tokens of all tiles, put together.
        place: Per tile, (tokens of the tile,), the place of each of its tokens in that canvas, in raster order.
    """

    thumbnail: Tensor
    side: tuple[int, int]
    crops: list[Tensor]
    grid: tuple[int, int]
    canvas: tuple[int, int]
    place: list[Tensor]

    def regions(self) -> Tensor:
        """(tokens of the thumbnail,): the tile that shows the place of each token's centre."""
        tile = torch.empty(self.canvas[0] * self.canvas[1], dtype=torch.int64, device=self.thumbnail.device)
        for number, place in enumerate(self.place):
            tile[place] = number
        row, column = (
            (torch.arange(n, device=tile.device) * 2 + 1) * there // (2 * n)
            for n, there in zip(self.side, self.canvas, strict=True)
        )
        return tile[(row[:, None] * self.canvas[1] + column).flatten()]
