"""Hooks that let the stages at the cache act: each behind its layer's attention, late ones behind the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vtprune.engine.chain import Chain
from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.decoder import DecoderStep
from vtprune.engine.eviction import Eviction
from vtprune.integrations.base import Integration


class EvictionHooks:
    """Hooks on the decoder layers at which stages of the cache act; no forward is copied.

    Args:
        integration: The model's family.
        chain: Its stages.
        step: The call of the language model that is under way on this thread; None for none that concerns the engine.
    """

    def __init__(self, integration: Integration, chain: Chain, step: Callable[[], DecoderStep | None]) -> None:
        self.integration = integration
        self.step = step
        self.stages: dict[int, list[ChainStage]] = {}
        self.late = [stage for stage in chain.cache_stages if stage.stage.late]
        for stage in chain.cache_stages:
            for layer in () if stage.stage.late else stage.layers:
                self.stages.setdefault(layer, []).append(stage)

    def attach(self, before: Callable[..., None], after: Callable[..., None]) -> None:
        """Put the hooks on their modules; `before` and `after` register one before a module's forward, and behind.

        To be called once the hooks of stages at decoder layers are there: these may ask what the keys of the layer
        before received, so nothing may leave it until they have run.
        """
        layers = self.integration.decoder_layers
        for i in sorted(self.stages):
            after(layers[i].get_submodule("self_attn"), self._attended(i), with_kwargs=True)
            if i + 1 < len(layers):
                before(layers[i + 1], self._act)
            else:
                after(layers[i], self._act)
        for i in sorted({layer for stage in self.late for layer in stage.layers}):
            after(layers[i].get_submodule("self_attn"), self._note(i))
        if self.late:
            after(layers[-1], self._act_late)

    def _eviction(self) -> Eviction | None:
        """What belongs to the call that is under way."""
        step = self.step()
        if step is not None and step.eviction is None:
            step.eviction = Eviction(self.integration, step)
        return None if step is None else step.eviction

    def _attended(self, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            eviction = self._eviction()
            if eviction is not None and any(eviction.acts(stage, layer) for stage in self.stages[layer]):
                hidden = args[0] if args else kwargs["hidden_states"]
                eviction.attended(layer, hidden, kwargs["position_embeddings"])

        return hook

    def _note(self, layer: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if (eviction := self._eviction()) is not None:
                eviction.note(layer)

        return hook

    def _act(self, module: nn.Module, *_: Any) -> None:
        eviction = self._eviction()
        if eviction is None or (ran := eviction.ran) is None:
            return
        with torch.no_grad():
            for stage in self.stages[ran.layer]:
                if eviction.acts(stage, ran.layer):
                    eviction.run(stage, ran)
        eviction.ran = None

    def _act_late(self, *_: Any) -> None:
        eviction = self._eviction()
        if eviction is None:
            return
        with torch.no_grad():
            for stage in self.late:
                for layer in stage.layers:
                    if layer in eviction.noted and eviction.acts(stage, layer):
                        eviction.run(stage, eviction.noted[layer])
        eviction.noted = {}
