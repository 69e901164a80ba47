"""The visual slots of a call of the language model, as a stage between its layers sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vtprune.engine.layout import VisualLayout
from vtprune.engine.slots import Slots
from vtprune.kernels import compact_index, gather_rows


class Visual(NamedTuple):
    """The visual slots that are left.

    Attributes:
        visual: Bool (rows, slots now), newlines among them.
        candidate: Bool (rows, slots now), without newlines.
        at: (rows, tokens), where the candidates stand; 0 on padding.
        valid: Bool (rows, tokens), False on padding; None without.
        number: (rows, tokens), their picture, counted within the row; -1 on padding.
        arrived: (rows, pictures), how many there are of each picture.
    """

    visual: Tensor
    candidate: Tensor
    at: Tensor
    valid: Tensor | None
    number: Tensor
    arrived: Tensor


def visual_slots(slots: Slots, layout: VisualLayout, candidates: Sequence[int]) -> Visual:
    """Look at the slots that are left.

    Args:
        slots: The slots.
        layout: Where the pictures stood at first.
        candidates: Per row, number of visual slots that are left and no newlines; known on the host.
    """
    picture = slots.on(layout.picture)
    visual = picture >= 0
    candidate = visual if layout.newlines is None else visual & ~slots.on(layout.newlines)
    most = max(candidates)
    at, valid = compact_index(candidate, width=most, padded=most != min(candidates))
    number = gather_rows(picture, at)
    if any(layout.first):
        number = number - torch.tensor(layout.first, device=number.device)[:, None]
    if valid is not None:
        number = number.masked_fill(~valid, -1)
    arrived = number.new_zeros(len(number), layout.most + 1)
    arrived = arrived.scatter_add(1, number + 1, torch.ones_like(number))[:, 1:]
    return Visual(visual, candidate, at, valid, number, arrived)
