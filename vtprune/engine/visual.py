"""The visual slots of a call of the language model, as a stage between its layers sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.events import Blended, Marked
from vtprune.engine.layout import VisualLayout
from vtprune.engine.selection import living
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

    def staying(self, mask: Tensor, newline: Tensor | None, layout: VisualLayout, slots: Slots) -> Tensor:
        """Bool (rows, slots now): what stays of all slots, text among them.

        Args:
            mask: Bool (rows, tokens), the candidates that stay.
            newline: Bool (rows, slots now); None if there are none. They stay as long as a token of their line does.
            layout: Where the pictures stood at first.
            slots: The slots that are left.
        """
        drop = ~mask.to(self.at.device)
        if self.valid is not None:
            drop = drop & self.valid
        # Padding points at slot 0: it must not undo what is decided about that slot.
        keep = ~torch.zeros_like(self.visual).scatter_reduce(1, self.at, drop, "amax")
        if newline is None:
            return keep
        lines = slots.on(layout.lines).clamp_min(0)
        count = layout.longest * len(layout.source)
        return keep & ~(newline & self.visual & ~living(lines, count, self.candidate & keep))

    def left(self, stage: ChainStage, layer: int, keep: Tensor, slot: Tensor | None, owner: Tensor | None) -> Marked:
        """What a stage did, for the report.

        Args:
            stage: The stage.
            layer: The layer that is about to run.
            keep: Bool (rows, slots now), what stays.
            slot: (rows, slots now), which slot of the call each is; None while all are there.
            owner: (rows, tokens), the candidate that stands for each; None where none becomes part of another.
        """
        before, after = [self.visual], [self.visual & keep]
        if owner is None:
            return Marked(stage, layer, before, after, slot)
        return Blended(stage, layer, before, after, slot, owner, self.at, self.valid)

    def replace(self, hidden: Tensor, new: Tensor) -> Tensor:
        """Hidden states (rows, slots now, width) with `new` ones (rows, tokens, width) of the candidates."""
        at, spare = self.at.to(hidden.device), hidden.shape[1]
        if self.valid is not None:  # padding writes behind the last slot
            at = at.masked_fill(~self.valid.to(at.device), spare)
            hidden = torch.cat((hidden, hidden[:, :1]), 1)
        return hidden.scatter(1, at.unsqueeze(-1).expand_as(new), new.to(hidden.dtype))[:, :spare]


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
