"""Windows: visual tokens that attend to their neighbours in the picture, block by block in reading order."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.methods._text import not_behind, text_before
from vtprune.methods.base import Cells, LayerSlots, Part

LEAST = 16  # slots of a block


def window_blocks(slots: LayerSlots, side: int) -> Part:
    """What all heads of visual tokens attend to within a window, later neighbours too, and to the text before them.

    In reading order, neighbours within `side // 2` rows and columns stand at most so many rows and columns apart. So
    visual tokens are cut into blocks, and a block attends to the band around it, masked to the windows: with maps of C
    columns, every token meets about 3 (side // 2) (C + 1) others instead of all. A newline counts as a cell at the end
    of its row.

    Args:
        slots: What the layer has, with "cells".
        side: Odd side of the window.
    """
    if slots.where is None:
        raise TypeError('"cells" must be asked for.')
    half, visual = side // 2, slots.visual
    count = visual.shape[1]
    reach = half * (slots.where.columns + 2)
    size = max(reach, LEAST)
    if size + 2 * reach >= count:  # one block of all
        size, reach = count, 0
    starts = torch.arange(0, count, size, device=visual.device)[:, None]
    mine = (starts + torch.arange(size, device=visual.device)).flatten()
    band = (starts + torch.arange(-reach, size + reach, device=visual.device)).flatten()
    cells = torch.stack(with_newlines(slots.where.cells, visual), -1)  # (rows, visual slots, 4)
    asking, offered = (_blocks(visual, x, len(starts)) for x in (mine, band))
    mine_at, band_at = (_blocks(cells, x, len(starts)) for x in (mine, band))
    apart = (mine_at.unsqueeze(-2) - band_at.unsqueeze(-3)).abs()  # (rows, blocks, n, m, 4)
    near = (apart[..., :2] == 0).all(-1) & (apart[..., 2:] <= half).all(-1)
    text, is_text = text_before(slots)
    text = text.unsqueeze(2).expand(-1, -1, len(starts), -1)  # (rows, 1, blocks, k)
    before = not_behind(text, asking[:, None], slots.past) & is_text[:, :, None, None]
    entries = torch.cat((torch.where(offered < 0, -1, offered + slots.past)[:, None], text), -1)
    near = near[:, None].expand(-1, before.shape[1], -1, -1, -1)
    return Part(asking[:, None], entries, sees=torch.cat((near, before), -1))


def with_newlines(cells: Cells, visual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Map, frame, row and column of visual slots; of a newline those behind the token before it."""
    newline = (cells.map < 0) & (visual >= 0)
    map_, frame, row, column = (
        torch.where(newline, x.roll(1, 1), x) for x in (cells.map, cells.frame, cells.row, cells.column)
    )
    return map_, frame, row, column + newline


def _blocks(x: Tensor, index: Tensor, blocks: int) -> Tensor:
    """Values (rows, slots, ...) at places (blocks * n,) as (rows, blocks, n, ...); -1 beyond the ends."""
    inside = (index >= 0) & (index < x.shape[1])
    taken = x[:, index.clamp(0, max(x.shape[1] - 1, 0))]
    outside = ~inside.view(1, -1, *[1] * (x.ndim - 2))
    return taken.masked_fill(outside, -1).unflatten(1, (blocks, -1))
