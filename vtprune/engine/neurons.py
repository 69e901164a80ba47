"""Stages that choose neurons: behind a prompt with pictures, decoded tokens use a part of an MLP's channels only.

A stage sees what enters the last projection of an MLP while the prompt runs, and names the channels that stay, row by
row. Decoded tokens then run on weights from which the others are sliced: those that no row of the batch uses. What only
other rows use is set to zero, so that a row computes what it would compute alone. The choice, and the sliced weights
with it, belong to the cache, follow its rows, and go with it. Prompts run on all channels, those of further turns too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.compat import at_hand
from vtprune.engine.cache import Record
from vtprune.engine.chain import Chain
from vtprune.engine.decoder import DecoderStep
from vtprune.engine.graphs import OutsideGraphs
from vtprune.integrations.base import Integration
from vtprune.methods.base import Activations, Neurons


class Core(Record):
    """The neurons of a layer that decoded tokens use.

    Args:
        neurons: Bool (rows, channels).
    """

    def __init__(self, neurons: Tensor) -> None:
        self.neurons = neurons
        self.sliced: tuple[Tensor, list[Tensor], list[Tensor | None]] | None = None

    def _update(self, each: Callable[[Tensor], Tensor], entries_only: bool = False) -> None:
        if not entries_only:
            self.neurons = each(self.neurons)

    def run(self, parts: tuple[Any, Any, Any, Callable[[Tensor], Tensor]], hidden: Tensor) -> Tensor:
        """What a gated MLP makes of hidden states (rows, 1, width) with these neurons alone."""
        gate, up, down, activation = parts
        if self.sliced is None:  # at the first decoded token: nobody may ask for one
            index = self.neurons.any(0).nonzero()[:, 0]
            with at_hand(gate), at_hand(up), at_hand(down):
                weights = [gate.weight[index], up.weight[index], down.weight[:, index].contiguous()]
                biases = [None if x.bias is None else x.bias[index] for x in (gate, up)]
                self.sliced = index, weights, [*biases, down.bias]
        index, (g, u, d), (g_bias, u_bias, d_bias) = self.sliced
        x = activation(nn.functional.linear(hidden, g, g_bias)) * nn.functional.linear(hidden, u, u_bias)
        if len(x) > 1:
            x = x * self.neurons[:, index].unsqueeze(1).to(x)
        return nn.functional.linear(x, d, d_bias)


class NeuronHooks:
    """Hooks on the MLPs whose neurons stages choose, and what runs in the place of their forwards while decoding.

    Args:
        integration: The model's family.
        chain: Its stages.
        step: The call of the language model that is under way on this thread; None for none that concerns the engine.

    Raises:
        ValueError: An MLP's weights cannot be sliced.
    """

    def __init__(self, integration: Integration, chain: Chain, step: Callable[[], DecoderStep | None]) -> None:
        self.integration = integration
        self.stages = chain.neuron_stages
        self.step = step
        for layer, stage in self.stages.items():
            if layer in chain.mlp_stages:
                raise ValueError(
                    f"{stage.method} chooses neurons of layer {layer}, whose MLP {chain.mlp_stages[layer].method} lets "
                    "run on some tokens, or channels, only; give them different layers."
                )
            for part in self._parts(layer)[:3]:
                if type(part) is not nn.Linear:
                    raise ValueError(
                        f"{stage.method} cannot slice the weights of {type(part).__name__}: merge adapters, load the "
                        "model without quantisation, or let it choose tokens only (neurons=False)."
                    )

    def _parts(self, layer: int) -> tuple[Any, Any, Any, Callable[[Tensor], Tensor]]:
        return self.integration.decoder_mlp(self.integration.decoder_layers[layer])

    def attach(self, before: Callable[..., None], replace: Callable[..., None]) -> None:
        """Put the hooks on their modules.

        Args:
            before: Registers a hook before a module's forward.
            replace: Puts a wrapper in the place of a module's method.
        """
        for layer in sorted(self.stages):
            before(self._parts(layer)[2], self._look(layer))
            replace(self.integration.decoder_layers[layer].get_submodule("mlp"), "forward", self._run(layer))

    def _look(self, layer: int) -> Callable[..., None]:
        stage = self.stages[layer]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            step = self.step()
            if step is None or step.cache is None or step.layout is None or step.picture is None:
                return
            valid = step.slots.valid
            with torch.no_grad():
                decision = stage.decide(Activations(layer, args[0].detach(), valid))
            if decision is None:
                return
            if not isinstance(decision, Neurons):
                raise TypeError(f"{stage.method}: a stage that chooses neurons must return Neurons, got {decision!r}.")
            # Prompts without pictures are left alone.
            neurons = decision.mask | (step.layout.picture < 0).all(1, keepdim=True).to(decision.mask.device)
            step.link_rows()
            held: Any = step.cached[layer]
            held.core = Core(neurons)
            step.inside.neurons[layer] = stage.method, neurons

        return hook

    def _run(self, layer: int) -> Callable[[Any], Any]:
        def wrap(original: Callable[..., Any]) -> OutsideGraphs:
            def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
                step = self.step()
                if step is None or step.layout is not None or step.cache is None or step.slots.width > 1:
                    return original(hidden, *args, **kwargs)
                core = getattr(step.cached[layer], "core", None)
                return original(hidden, *args, **kwargs) if core is None else core.run(self._parts(layer), hidden)

            return OutsideGraphs(forward)

        return wrap
