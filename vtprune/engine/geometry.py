"""What follows from a picture's layout alone, as tensors on a device: made once for all pictures that look alike."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from vtprune.engine.tiles import tiles_of
from vtprune.integrations.base import Grid, PictureLayout


class Geometry:
    """Index tensors of a layout on a device.

    Attributes:
        newlines: Bool (slots,): newline tokens.
        candidates: Bool (slots,): the opposite.
        lines: (slots,), see `PictureLayout.lines`; None without newlines.
        cells: The five columns of `PictureLayout.cells`, (slots,) each.
        tiles: Of a tiled picture; None of others.
    """

    def __init__(self, layout: PictureLayout, device: torch.device) -> None:
        self.layout = layout
        self.device = device
        self.newlines = layout.newlines.to(device)
        self.candidates = ~self.newlines
        self.lines = None if layout.lines is None else layout.lines.to(device)
        self.cells = tuple(layout.cells.T.contiguous().to(device))
        self.tiles = tiles_of(layout, device)
        self._parts: dict[tuple[bool, bool, int | None], list[Part]] = {}

    def parts(self, by_map: bool, by_tile: bool, budget: int | None = None) -> list[Part]:
        """What is decided together.

        Args:
            by_map: Every map by itself; else
            by_tile: every tile of every frame by itself; else the whole picture.
            budget: Number of tokens that the parts share.
        """
        key = (by_map, by_tile, budget)
        if key not in self._parts:
            with torch.inference_mode(False):
                self._parts[key] = self._divide(by_map, by_tile, budget)
        return self._parts[key]

    def _divide(self, by_map: bool, by_tile: bool, budget: int | None) -> list[Part]:
        maps = self.layout.maps
        whole: list[tuple[Tensor, Grid | None]]
        if by_map:
            whole = [(m.slots(), m.grid) for m in maps]
        elif by_tile:
            whole = [piece for m in maps for piece in m.pieces()]
        else:
            tokens = (~self.layout.newlines).nonzero().squeeze(1)
            whole = [(tokens, maps[0].grid if len(maps) == 1 else None)]
        alike: dict[tuple[Grid | None, int | None], list[Tensor]] = {}
        candidates, before = sum(m.tokens for m in maps), 0
        for slots, grid in whole:
            share = None
            if budget is not None and len(whole) > 1:
                # Rounding down at the edges of the parts makes the shares add up.
                first, last = (min(budget, candidates) * x // candidates for x in (before, before + len(slots)))
                share = last - first
            alike.setdefault((grid, share), []).append(slots)
            before += len(slots)
        return [
            Part(torch.stack(slots).to(self.device), grid, share, _is_everything(slots, self.layout.slots))
            for (grid, share), slots in alike.items()
        ]


class Part(NamedTuple):
    """Pieces of a picture that are decided alike.

    Attributes:
        slots: (pieces, tokens).
        grid: Of a piece.
        share: Tokens of the budget that fall to each; None if the budget is not shared out.
        everything: Whether the one piece is all slots of the picture in order.
    """

    slots: Tensor
    grid: Grid | None
    share: int | None
    everything: bool


def _is_everything(pieces: list[Tensor], slots: int) -> bool:
    return len(pieces) == 1 and len(pieces[0]) == slots and bool((pieces[0] == torch.arange(slots)).all())


@functools.lru_cache(maxsize=32)
def geometry(layout: PictureLayout, device: torch.device) -> Geometry:
    """The index tensors of a layout on a device."""
    # Shared by all requests, of which some may need gradients.
    with torch.inference_mode(False):
        return Geometry(layout, device)
