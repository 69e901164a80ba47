"""Tiled pictures: which tokens form the thumbnail, and which part of the picture each tile shows enlarged."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vtprune.methods.base import Cells, Pictures


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


def cells_of(pictures: Pictures, method: str) -> Cells:
    """Where each token lies.

    Raises:
        ValueError: It is not known.
    """
    if pictures.cells is None:
        raise ValueError(f"method {method!r} needs the cells of tokens, but got None.")
    return pictures.cells


def tiles_of(pictures: Pictures, method: str) -> Tiles | None:
    """The tiles of a picture; None of a picture or video that has none.

    Of two maps the first is the thumbnail, the second the canvas of tiles (LLaVA); of more, which are one tile each,
    the last is the thumbnail (InternVL). How these lie is not told to the model: it is taken for the most nearly square
    arrangement, wider than high.

    Raises:
        ValueError: Tokens were removed before.
    """
    if pictures.grid is not None:
        return None
    maps, tile, frame, row, column = torch.stack([x[0] for x in cells_of(pictures, method)]).cpu()
    of_map = [(maps == number).nonzero()[:, 0] for number in maps.unique()]
    shapes = [(int(row[x].max()) + 1, int(column[x].max()) + 1) for x in of_map]
    if int(frame.max()) == 0 and sum(rows * columns for rows, columns in shapes) != pictures.tokens:
        raise ValueError(f"{method} compares whole tiles, but tokens were removed before; put {method} first.")
    if int(frame.max()) > 0 or len(of_map) == 1:
        return None
    if len(of_map) == 2:
        chosen, canvas = 0, shapes[1]
        inside = of_map[1]
        crops = [inside[tile[inside] == number] for number in tile[inside].unique()]
        across = len(tile[inside[: canvas[1]]].unique())
        grid = len(crops) // across, across
        place = [row[x] * canvas[1] + column[x] for x in crops]
    else:
        chosen, crops = len(of_map) - 1, of_map[:-1]
        grid = nearly_square(len(crops))
        rows, columns = shapes[0]
        canvas = rows * grid[0], columns * grid[1]
        place = [
            (i // grid[1] * rows + row[x]) * canvas[1] + i % grid[1] * columns + column[x] for i, x in enumerate(crops)
        ]
    device = pictures.encoded.device
    crops, place = ([x.to(device) for x in part] for part in (crops, place))
    return Tiles(of_map[chosen].to(device), shapes[chosen], crops, grid, canvas, place)


def nearly_square(count: int) -> tuple[int, int]:
    """Rows and columns of so many tiles, rows at most as many as columns."""
    rows = max(n for n in range(1, int(count**0.5) + 1) if count % n == 0)
    return rows, count // rows
