"""Text as entries: what may be attended to by those who no longer attend to visual tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.methods.base import LayerSlots


def text_entries(slots: LayerSlots, text: Tensor) -> tuple[Tensor, Tensor]:
    """Text of this call, and behind which no earlier visual token hides.

    Args:
        slots: What the layer has.
        text: (rows, n), a list of slots of text.

    Returns:
        Entries of earlier calls and of this text, a list (rows, 1, k), and bool (rows, 1 or kv_heads, k), False on
        visual tokens of earlier calls.
    """
    now = torch.where(text < 0, -1, text + slots.past)
    if not slots.past:
        return now[:, None], torch.ones_like(now, dtype=torch.bool)[:, None]
    earlier = torch.arange(slots.past, device=text.device).expand(len(text), -1)
    no_picture = ~slots.visual_entries[:, :, : slots.past]
    entries = torch.cat((earlier, now), 1)[:, None]
    return entries, torch.nn.functional.pad(no_picture, (0, text.shape[1]), value=True)


def text_before(slots: LayerSlots) -> tuple[Tensor, Tensor]:
    """The same for text that stands before a row's last visual slot; needs "cells"."""
    if slots.where is None:
        raise TypeError('"cells" must be asked for.')
    return text_entries(slots, slots.where.text_before)


def not_behind(entries: Tensor, asking: Tensor, past: int) -> Tensor:
    """Bool (..., n, k): which entries (..., k) do not stand behind slots (..., n)."""
    return entries.unsqueeze(-2) <= (asking + past).unsqueeze(-1)


def of_heads(x: Tensor, heads: Sequence[int], slots: LayerSlots) -> Tensor:
    """Values (rows, 1 or kv_heads, ...) for some query heads: (rows, 1 or len(heads), ...)."""
    if x.shape[1] == 1:
        return x
    return x[:, [head * slots.kv_heads // slots.heads for head in heads]]
