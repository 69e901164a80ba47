"""What the tokens of one picture or video are: the rectangular maps that they form, and the newlines between them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import torch
from torch import Tensor

Grid = tuple[int, int, int]
Kind = Literal["image", "video"]


@dataclasses.dataclass(frozen=True)
class Map:
    """A rectangular map of tokens: a whole picture, a tile, a canvas of tiles, the frames of a video.

    Args:
        name: "picture", "thumbnail", "canvas" (tiles put together again), "tile" or "video".
        grid: (frames, rows, columns).
        start: Slot of its first token, counted within the picture.
        gap: Slots between the last token of a row and the first one of the next: newline tokens.
        bands: Rows of each row of tiles, columns of each column of tiles; None for a map that is one tile.
        frame: Number of its first frame.
    """

    name: str
    grid: Grid
    start: int = 0
    gap: int = 0
    bands: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    frame: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens, newlines not counted."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def slots(self) -> Tensor:
        """(tokens,): slots of the tokens in raster order, frame by frame."""
        frames, rows, columns = self.grid
        lines = torch.arange(frames * rows) * (columns + self.gap)
        return (self.start + lines[:, None] + torch.arange(columns)).flatten()

    def pieces(self) -> list[tuple[Tensor, Grid]]:
        """The slots and the grid of every tile of every frame, in raster order."""
        frames, rows, columns = self.grid
        heights, widths = self.bands or ((rows,), (columns,))
        slots = self.slots().view(frames, rows, columns)
        found = []
        for frame in slots:
            for band in frame.split(heights, 0):
                found += [(tile.flatten(), (1, *tile.shape)) for tile in band.split(widths, 1)]
        return found


@dataclasses.dataclass(frozen=True)
class PictureLayout:
    """The slots of one picture or video in the language model's input.

    Args:
        kind: "image" or "video".
        maps: Its maps. Slots that belong to none are newline tokens; each ends the tokens before it, back to the
            newline or the beginning of the map before them.
        slots: Number of slots.
        seconds: Time from one frame to the next, if the model is told.
    """

    kind: Kind
    maps: tuple[Map, ...]
    slots: int
    seconds: float | None = None

    @property
    def grid(self) -> Grid | None:
        """The grid, if all slots form one."""
        return self.maps[0].grid if len(self.maps) == 1 and self.maps[0].tokens == self.slots else None

    @functools.cached_property
    def lines(self) -> Tensor | None:
        """(slots,): the line that each slot belongs to, newlines as the tokens that they end; None without newlines."""
        if sum(m.tokens for m in self.maps) == self.slots:
            return None
        newline = self.newlines
        starts = torch.zeros(self.slots, dtype=torch.long)
        starts[1:] += newline[:-1] & ~newline[1:]  # a token that follows a newline begins a line
        starts[[m.start for m in self.maps]] = 1
        return starts.cumsum(0) - 1

    @functools.cached_property
    def newlines(self) -> Tensor:
        """Bool (slots,): which slots are newline tokens."""
        newline = torch.ones(self.slots, dtype=torch.bool)
        for one in self.maps:
            newline[one.slots()] = False
        return newline

    @functools.cached_property
    def cells(self) -> Tensor:
        """(slots, 5): map, tile, frame, row and column of every slot; -1 throughout on newlines.

        Tiles are counted over all maps, rows and columns within their map.
        """
        cells = torch.full((self.slots, 5), -1)
        tiles = 0
        for number, one in enumerate(self.maps):
            _, rows, columns = one.grid
            slots = one.slots()
            raster = torch.arange(one.tokens)
            cells[slots, 0] = number
            cells[slots, 2] = one.frame + raster // (rows * columns)
            cells[slots, 3] = raster // columns % rows
            cells[slots, 4] = raster % columns
            per_frame = len(one.bands[0]) * len(one.bands[1]) if one.bands else 1
            for i, (piece, _) in enumerate(one.pieces()):
                cells[piece, 1] = tiles + i % per_frame
            tiles += per_frame
        return cells

    @staticmethod
    def join(parts: tuple[PictureLayout, ...], kind: Kind) -> PictureLayout:
        """The layout of a picture that is encoded in parts: tiles of an image, or frames of a video."""
        if len(parts) == 1 and parts[0].kind == kind:
            return parts[0]
        maps, start = [], 0
        for number, part in enumerate(parts):
            for one in part.maps:
                frame = number if kind == "video" else one.frame
                maps.append(dataclasses.replace(one, start=one.start + start, frame=frame))
            start += part.slots
        first = maps[0]
        if kind == "video" and len(maps) == len(parts) and all(m.grid == first.grid and not m.gap for m in maps):
            frames = sum(m.grid[0] for m in maps)
            maps = [Map("video", (frames, *first.grid[1:]))]
        return PictureLayout(kind, tuple(maps), start, parts[0].seconds)
