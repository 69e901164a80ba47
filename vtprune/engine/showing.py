"""What a stage at a decoder layer is shown: the visual tokens, and all signals that it asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtprune.engine.devices import moved
from vtprune.engine.signals import on_all_rows, query_rows
from vtprune.engine.slots import Slots
from vtprune.engine.visual import Visual
from vtprune.integrations.base import Integration
from vtprune.kernels import compact_index, gather_rows
from vtprune.methods.base import VisualTokens

if TYPE_CHECKING:
    from vtprune.engine.chain_stage import ChainStage
    from vtprune.engine.decoder import DecoderStep


def show(
    step: DecoderStep, stage: ChainStage, layer: int, hidden: Tensor, visual: Visual, states: Tensor | None
) -> VisualTokens:
    """Gather what a stage asks for.

    Args:
        step: The call of the language model.
        stage: The stage.
        layer: The layer that is about to run.
        hidden: (rows, slots now, width), its input.
        visual: The visual slots.
        states: (rows, tokens, width), their part of the input, if it is needed.
    """
    if step.layout is None:
        raise RuntimeError("only a call with pictures has stages.")
    picture, slots = step.slots.on(step.layout.picture), step.slots
    kept_by = _kept_by(step, layer - 1) if stage.captured else (None, None)
    attention = last_row = None
    if stage.looks_ahead:
        rotation = on_all_rows(step._rotation(layer, hidden), step.batch)
        earlier = step.cached[layer].keys if step.past_length[layer] else None
        ahead = layer, hidden, rotation, picture, slots, earlier, step.rows[layer].valid, visual
        if stage.queries is not None:
            attention = step.signals.ahead(stage.queries, *ahead)
        last_row = step.signals.last_row(*ahead) if stage.sees_last_row else None
    elif stage.queries is not None:
        attention = step.signals.attention(stage.queries, *kept_by, visual)
    text, text_valid = text_states(hidden, picture, slots) if stage.sees_text else (None, None)
    closing = closing_valid = None
    if "closing_text" in stage.signals:
        closing, closing_valid = closing_states(hidden, step.layout.picture, slots)
    marked = step.marks.get(stage.method)
    return VisualTokens(
        layer,
        visual.number >= 0,
        visual.number,
        visual.arrived,
        moved(attention, step.device),
        step.memory.setdefault(stage.method, {}),
        states.detach() if states is not None and stage.sees_hidden else None,
        moved(step.signals.queries_keys(*kept_by, visual), step.device) if stage.sees_queries_keys else None,
        moved(step.signals.text_rows(*kept_by, visual), step.device) if stage.sees_text_rows else None,
        text,
        text_valid,
        step.observed.of(stage.method, visual),
        None if marked is None else gather_rows(slots.on(marked), visual.at),
        moved(last_row, step.device),
        closing,
        closing_valid,
        predictions(step.integration, hidden, picture, slots) if "prediction" in stage.signals else None,
    )


def _kept_by(step: DecoderStep, layer: int) -> tuple[Tensor | None, Tensor | None]:
    """A layer's keys in the cache, if there is one, and which of its slots are no padding."""
    return step.cached[layer].keys if step.cache is not None else None, step.rows[layer].valid


def text_states(hidden: Tensor, picture: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
    """Hidden states of the text after the first picture, (rows, n, width), and which are no padding, (rows, n)."""
    index, valid = query_rows("text", picture, slots.valid)
    there = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    return gather_rows(hidden.detach(), index.to(hidden.device)), there


def closing_states(hidden: Tensor, picture: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
    """The same of the text behind the last picture, of all text where there is none.

    Args:
        hidden: (rows, slots now, width).
        picture: (rows, slots of the call), number of the slot's picture, -1 on text and padding; of the call, because a
            picture that has left is still before its text.
        slots: The slots that are left.
    """
    behind = (picture >= 0).flip(1).cumsum(1).flip(1) == 0
    behind = behind if slots.index is None else gather_rows(behind, slots.index)
    index, valid = compact_index(behind if slots.valid is None else behind & slots.valid)
    there = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    return gather_rows(hidden.detach(), index.to(hidden.device)), there


def predictions(integration: Integration, hidden: Tensor, picture: Tensor, slots: Slots) -> Tensor:
    """Logits (rows, vocabulary) of the last slot of every row, if no further layer ran."""
    last, _ = query_rows("last_query", picture, slots.valid)
    return integration.decoder_logits(gather_rows(hidden.detach(), last.to(hidden.device)))[:, 0].to(hidden.device)
