"""How the tokens of a tiled picture are divided, read off its layout."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.integrations.base import Map, PictureLayout
from vtprune.methods.base import Tiles


def tiles_of(layout: PictureLayout, device: torch.device) -> Tiles | None:
    """The tiles of a picture; None of a picture or video that has none.

    Indices count tokens, without newlines. Of maps that are one tile each, the last is the thumbnail (InternVL). How
    the others lie is not told to the model: it is taken for the most nearly square arrangement, wider than high.
    """
    names = [one.name for one in layout.maps]
    if layout.kind == "video" or len(names) == 1:
        return None
    starts = [sum(one.tokens for one in layout.maps[:i]) for i in range(len(names))]
    if names == ["thumbnail", "canvas"]:
        thumbnail, canvas = layout.maps
        pieces, (heights, widths) = _pieces(canvas), canvas.bands or ((), ())
        shape, grid = canvas.grid[1:], (len(heights), len(widths))
        crops, place = [starts[1] + piece for piece in pieces], pieces
        chosen = 0
    elif set(names) == {"tile"}:
        thumbnail, first = layout.maps[-1], layout.maps[0]
        grid = nearly_square(len(names) - 1)
        rows, columns = first.grid[1:]
        shape = rows * grid[0], columns * grid[1]
        whole = Map("canvas", (1, *shape), bands=((rows,) * grid[0], (columns,) * grid[1]))
        crops = [start + torch.arange(first.tokens) for start in starts[:-1]]
        place = _pieces(whole)
        chosen = len(names) - 1
    else:
        return None
    inside = starts[chosen] + torch.arange(thumbnail.tokens)
    crops, place = ([x.to(device) for x in part] for part in (crops, place))
    return Tiles(inside.to(device), thumbnail.grid[1:], crops, grid, shape, place)


def _pieces(canvas: Map) -> list[Tensor]:
    """Per tile, the places of its tokens in the canvas, in raster order."""
    return [slots for slots, _ in Map(canvas.name, canvas.grid, bands=canvas.bands).pieces()]


def nearly_square(count: int) -> tuple[int, int]:
    """Rows and columns of so many tiles, rows at most as many as columns."""
    rows = max(n for n in range(1, int(count**0.5) + 1) if count % n == 0)
    return rows, count // rows
