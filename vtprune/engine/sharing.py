"""Slots that share a hidden state: all of them stay, but what they have in common is computed once.

Tokens that were merged before the language model may stay on their slots, with their positions. Then the slots of a
group have one hidden state between them, from the first decoder layer to the last. Norms, projections and MLPs run on
states; attention itself, with its rotary embedding, mask and cache, sees every slot: queries, keys and values are
copied to the slots, and what the slots of a state attend to is averaged before the output projection. The language
model is called with all slots, so transformers itself builds whatever goes by their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.engine.slots import Slots
from vtprune.integrations.base import Integration
from vtprune.kernels import compact_index, gather_rows, merge_by_owner


class Sharing:
    """Which slots of a call share a state.

    Attributes:
        slot: (rows, states), the slot whose hidden state each begins with; 0 on padding.
        state: (rows, slots), the state of every slot; 0 on padding.
        counts: Per row, number of states.
    """

    def __init__(self, slot: Tensor, state: Tensor, counts: list[int], weights: Tensor | None = None) -> None:
        self.slot = slot
        self.state = state
        self.counts = counts
        self.weights = weights  # (rows, slots), 0 on padding; None without
        self.normed: Tensor | None = None  # states that enter the attention that runs, (rows, states, width)

    @staticmethod
    def of(owner: Tensor, slots: Slots) -> Sharing | None:
        """Read an owner map, (rows, slots): for every slot the one whose state it shares; None if all are alone.

        Raises:
            ValueError: An owner does not own itself.
        """
        own = torch.arange(owner.shape[1], device=owner.device)
        first = owner == own
        astray = ~first.gather(1, owner)
        if slots.valid is not None:
            first = first & slots.valid
        *counts, wrong = torch.cat((first.sum(1), astray.sum()[None])).tolist()  # the one time that the host waits
        if wrong:
            raise ValueError("tokens can only share the state of one that stands for itself.")
        if counts == slots.counts:
            return None
        most = max(counts)
        slot, _ = compact_index(first, width=most, padded=most != min(counts))
        ranks = first.cumsum(1) + most - first.sum(1, keepdim=True) - 1  # padding comes first
        state = ranks.gather(1, owner)
        if slots.valid is None:
            return Sharing(slot, state, counts)
        return Sharing(slot, state.masked_fill(~slots.valid, 0), counts, slots.valid.float())

    def move(self, device: torch.device) -> None:
        """Go to another device."""
        self.slot, self.state = self.slot.to(device), self.state.to(device)
        self.weights = None if self.weights is None else self.weights.to(device)

    def take(self, x: Tensor) -> Tensor:
        """Values of slots (rows, slots, ...), as states begin with them: (rows, states, ...)."""
        return gather_rows(x, self.slot)

    def spread(self, x: Tensor) -> Tensor:
        """Values of states (rows, states, ...) on all their slots: (rows, slots, ...)."""
        return gather_rows(x, self.state)

    def average(self, x: Tensor) -> Tensor:
        """Mean over the slots of every state, summed in float32: (rows, slots, width) -> (rows, states, width)."""
        return merge_by_owner(x, self.state, self.slot.shape[1], self.weights)[0]


class SharingHooks:
    """Hooks on all decoder layers; no forward is copied.

    Args:
        integration: The model's family.
        sharing: What is shared in the call that is under way on this thread; None for nothing.
    """

    def __init__(self, integration: Integration, sharing: Callable[[], Sharing | None]) -> None:
        self.integration = integration
        self.sharing = sharing

    def attach(self, before: Callable[..., None], after: Callable[..., None]) -> None:
        """Put the hooks on their modules; `before` and `after` register one before a module's forward, and behind."""
        layers = self.integration.decoder_layers
        before(layers[0], self._enter)
        for layer in layers:
            inputs, output = self.integration.decoder_projections(layer)
            before(layer.get_submodule("self_attn"), self._spread_attention_input)
            for projection in inputs:
                before(projection, self._project_states)
                after(projection, self._spread_output)
            before(output, self._average)
        # First of all hooks, so that a captured hidden state is the whole one.
        after(layers[-1], self._spread_output, prepend=True)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sharing = self.sharing()
        return None if sharing is None else ((sharing.take(args[0]), *args[1:]), kwargs)

    def _spread_attention_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sharing = self.sharing()
        if sharing is None:
            return None
        # The attention goes by the length of this; its projections get the states themselves.
        sharing.normed = args[0] if args else kwargs["hidden_states"]
        slots = sharing.spread(sharing.normed)
        return ((slots, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": slots})

    def _project_states(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sharing = self.sharing()
        return None if sharing is None else ((sharing.normed, *args[1:]), kwargs)

    def _spread_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        sharing = self.sharing()
        if sharing is None:
            return None
        if isinstance(output, tuple):
            return sharing.spread(output[0]), *output[1:]
        return sharing.spread(output)

    def _average(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sharing = self.sharing()
        if sharing is None:
            return None
        sharing.normed = None
        return (sharing.average(args[0]), *args[1:]), kwargs
