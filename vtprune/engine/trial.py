"""Trial runs: the first decoder layers on all slots, before any of them leaves, so that a stage can look ahead.

Nothing of a trial run stays: no cache is written, no hook of a decoder layer and no stage inside one acts, gradients do
not flow. Layers attend as the model's attention implementation has it, to the keys of earlier calls too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.compat import nothing_collected
from vtprune.engine.flops import decoder_flops
from vtprune.integrations.base import Integration

if TYPE_CHECKING:
    from vtprune.engine.chain_stage import ChainStage
    from vtprune.engine.decoder import DecoderStep


class Tried(NamedTuple):
    """What a trial run computed, for the report.

    Attributes:
        method: Who asked for it.
        layers: Number of layers that ran.
        lengths: Slots per row that are no padding.
        past: Cached slots before them, per layer.
        visual: Bool (rows, slots that are there), the visual ones.
        slot: (rows, slots that are there), which slot of the call each was; None while all are there.
    """

    method: str
    layers: int
    lengths: list[int]
    past: list[int]
    visual: Tensor
    slot: Tensor | None

    def flops(self, integration: Integration) -> int:
        """What it took."""
        layers = zip(integration.decoder_layers[: self.layers], self.past, strict=True)
        return sum(decoder_flops(integration, layer, self.lengths, past) for layer, past in layers)


class Earlier:
    """Stands in for the cache: layers get the keys and values of earlier calls, and nothing is added to them."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values that a layer attends to."""
        held = self.layers[layer_idx]
        return torch.cat((held.keys.to(keys), keys), 2), torch.cat((held.values.to(values), values), 2)


def worth_trying(budget: Budget | None, candidates: Sequence[int]) -> bool:
    """Whether a budget may let tokens leave, as far as the host knows without waiting for the device.

    Args:
        budget: What the stage keeps of each picture; None if it does not say.
        candidates: Per row, number of visual tokens.
    """
    return budget != 1.0 if not isinstance(budget, int) else budget < max(candidates)


def try_out(
    step: DecoderStep, stage: ChainStage, layers: int, hidden: Tensor, kwargs: dict[str, Any], visual: Tensor
) -> Tensor:
    """What would enter a decoder layer if nothing left, (rows, slots, width).

    Args:
        step: The call of the language model.
        stage: Who asks.
        layers: The layer; those before it run.
        hidden: (rows, slots, width), the first layer's input.
        kwargs: Its other arguments.
        visual: Bool (rows, slots), the visual ones.
    """
    hidden, slots = hidden.detach(), step.slots
    step.tried.append(Tried(stage.method, layers, slots.counts, step.past_length[:layers], visual, slots.index))
    step.inside.paused = True
    with torch.no_grad(), nothing_collected():
        for i, layer in enumerate(step.integration.decoder_layers[:layers]):
            own = {
                "attention_mask": step._mask(i, hidden),
                "position_embeddings": step._rotation(i, hidden),
                "position_ids": None,
                "past_key_values": Earlier(step.cached) if step.past_length[i] else None,
                "use_cache": False,
            }
            # Not by a call of the module: hooks on a layer, of whomever, are about the real run.
            output = layer.forward(hidden, **{**kwargs, **own})
            hidden = output[0] if isinstance(output, tuple) else output
            if step.deepstack is not None and i < len(step.deep):
                features = step.deepstack.select(visual, step.deep[i])
                hidden = hidden.clone()
                hidden[visual.to(hidden.device)] += features.to(hidden)
    step.inside.paused = False
    return hidden.to(step.device)
