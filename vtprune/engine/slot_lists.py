"""The slots of a call, as lists: text, visual tokens, and where these lie; made once for all layers that have them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vtprune.engine.layout import VisualLayout
from vtprune.engine.slots import Slots
from vtprune.kernels import compact_index, gather_rows
from vtprune.methods.base import Cells, Where


class SlotLists:
    """The slots that are left, as stages inside decoder layers see them.

    Args:
        slots: The slots.
        layout: Where the pictures stood at first; None in a call without pictures.
        texts: Per row, number of text slots.
        device: Where they are.
    """

    def __init__(self, slots: Slots, layout: VisualLayout | None, texts: Sequence[int], device: torch.device) -> None:
        self.slots = slots
        self.layout = layout
        self.texts = list(texts)
        self.device = device

    @functools.cached_property
    def is_visual(self) -> Tensor:
        """Bool (rows, slots), visual slots, newlines among them."""
        if self.layout is None:
            return torch.zeros(len(self.slots.counts), self.slots.width, dtype=torch.bool, device=self.device)
        return self.slots.on(self.layout.picture) >= 0

    @functools.cached_property
    def text(self) -> Tensor:
        """(rows, n), text; -1 in front of shorter rows."""
        text = ~self.is_visual if self.slots.valid is None else ~self.is_visual & self.slots.valid
        return _list(text, self.texts)

    @functools.cached_property
    def visual(self) -> Tensor:
        """(rows, m), visual slots."""
        if self.layout is None:
            return torch.empty(len(self.slots.counts), 0, dtype=torch.long, device=self.device)
        return _list(self.is_visual, [n - text for n, text in zip(self.slots.counts, self.texts, strict=True)])

    @functools.cached_property
    def where(self) -> Where:
        """Where the visual slots lie."""
        layout = self.layout
        if layout is None or not self.visual.shape[1]:
            nowhere = torch.full_like(self.visual, -1)
            return Where(Cells(*[nowhere] * 5), 0, self.visual[:, :0])
        at, padding = self.visual.clamp_min(0), self.visual < 0
        picture, token = (gather_rows(self.slots.on(x), at).clamp_min(0) for x in (layout.picture, layout.token))
        known = [p.layout.cells for p in layout.pictures]
        table = torch.nn.utils.rnn.pad_sequence(known, batch_first=True)[layout.source].to(self.device)
        cells = table[picture, token].masked_fill(padding.unsqueeze(-1), -1)
        most = max(len(p.layout.maps) for p in layout.pictures)
        number = torch.where(cells[..., 0] < 0, -1, cells[..., 0] + picture * most)
        columns = max(m.grid[2] for p in layout.pictures for m in p.layout.maps)
        return Where(Cells(number, *cells[..., 1:].unbind(-1)), columns, self._text_before(layout))

    def _text_before(self, layout: VisualLayout) -> Tensor:
        ahead = self.is_visual.flip(1).cumsum(1).flip(1) > 0  # a visual slot, or one further on
        text = ahead & ~self.is_visual
        if self.slots.valid is not None:
            text = text & self.slots.valid
        # On the host: what is no picture before the last one; padding may be among it.
        behind = layout.visual.shape[1] - layout.visual[:, ::-1].argmax(1)
        other = np.where(layout.visual.any(1), behind - layout.visual.sum(1), 0)
        most = [min(n, t) for n, t in zip(other.tolist(), self.texts, strict=True)]
        index, valid = compact_index(text, width=max(most), padded=True)
        return index if valid is None else index.masked_fill(~valid, -1)


def _list(mask: Tensor, counts: Sequence[int]) -> Tensor:
    """Where `mask` is True, whose rows have these counts, known on the host."""
    index, valid = compact_index(mask, width=max(counts), padded=max(counts) != min(counts))
    return index if valid is None else index.masked_fill(~valid, -1)
