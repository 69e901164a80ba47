"""Hiding: from a layer on nobody attends to some tokens, which stay where they are and go on being computed.

To the layers they are like padding, in this call and in all later ones. Nothing is saved by it. What the others compute
equals what they compute after a removal at original positions.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import Tensor

from vtprune.engine.cache import divide_rows
from vtprune.engine.events import Marked

if TYPE_CHECKING:
    from vtprune.engine.chain_stage import ChainStage
    from vtprune.engine.decoder import DecoderStep


@dataclasses.dataclass(frozen=True)
class Hidden(Marked):
    """A stage that hid visual tokens; all of them are still there.

    Attributes:
        hidden: Bool (rows, slots), which ones nobody attends to any more.
    """

    hidden: Tensor

    def note(self) -> str:
        """How many nobody sees."""
        return f"{int(self.hidden.sum())} of them hidden from here on, which saves nothing"


def hide(step: DecoderStep, stage: ChainStage, layer: int, visual: Tensor, keep: Tensor) -> None:
    """Let nobody attend to slots in a layer and those behind it.

    Args:
        step: The call of the language model.
        stage: Who decided.
        layer: The layer that is about to run.
        visual: Bool (rows, slots now).
        keep: Bool (rows, slots now), False on what is hidden.
    """
    slots = step.slots
    stays = keep if slots.valid is None else keep & slots.valid
    hidden = visual & ~stays
    step.events.append(Hidden(stage, layer, [visual], [visual], slots.index, hidden))
    if not bool(hidden.any()):  # the one time that the host waits
        return
    divide_rows(step.rows, layer)
    step.link_rows()
    for rows in dict.fromkeys(step.rows[layer:]):
        rows.replace_tail(step.batch, step.past_length[rows.leader], slots.width, stays, step.device)
    step.inputs.clear()
    step.compacted = True
