"""Made-up tiled pictures."""

from __future__ import annotations

import torch

from vtprune.engine.tiles import tiles_of
from vtprune.integrations.layout import Map, PictureLayout
from vtprune.methods import Cells, Pictures


def tiled(
    columns: tuple[int, ...] = (4, 4), maps: tuple[Map, ...] | None = None, count: int = 2, seed: int = 0
) -> Pictures:
    """A thumbnail of 4 x 4 tokens and a canvas of two rows of tiles, with so many columns in each column of tiles."""
    if maps is None:
        canvas = Map("canvas", (1, 8, sum(columns)), start=16, gap=1, bands=((4, 4), columns))
        maps = (Map("thumbnail", (1, 4, 4)), canvas)
    last = maps[-1]
    layout = PictureLayout("image", maps, last.start + last.tokens + last.gap * last.grid[1])
    cells = layout.cells[~layout.newlines].T
    generator = torch.Generator().manual_seed(seed)
    encoded = torch.randn(count, cells.shape[1], 12, generator=generator)
    attention = torch.rand(count, cells.shape[1], generator=generator)
    tiles = tiles_of(layout, encoded.device)
    where = Cells(*(x.expand(count, -1) for x in cells))
    return Pictures(None, encoded, encoded, attention, where, tiles=tiles)
