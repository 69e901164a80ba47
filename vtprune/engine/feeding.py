"""Stages at the MLP of decoder layers: it runs on some slots only, or with fewer intermediate channels for some."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.compat import at_hand
from vtprune.engine.attending import layer_slots, listed
from vtprune.engine.chain import Chain
from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.decoder import DecoderStep
from vtprune.engine.work import Chosen, Work
from vtprune.integrations.base import Integration
from vtprune.methods.base import Feed

MLP = tuple[Any, Any, Any, Callable[[Tensor], Tensor]]  # gate, up, down, activation


class _Local(threading.local):
    fed: tuple[Chosen, list[Tensor]] | None = None  # who gets what, behind the MLP that runs, but for its own output


class FeedingHooks:
    """Hooks on the MLPs at which stages act; no forward is copied.

    Args:
        integration: The model's family.
        chain: Its stages.
        step: The call of the language model that is under way on this thread; None for none that concerns the engine.
    """

    def __init__(self, integration: Integration, chain: Chain, step: Callable[[], DecoderStep | None]) -> None:
        self.integration = integration
        self.stages = chain.mlp_stages
        self.step = step
        self.local = _Local()

    def attach(self, before: Callable[..., None], after: Callable[..., None]) -> Sequence[Any]:
        """Put the hooks on their modules; `before` and `after` register one before a module's forward, and behind.

        Returns:
            What else has to be removed: nothing.
        """
        for layer, stage in sorted(self.stages.items()):
            mlp = self.integration.decoder_layers[layer].get_submodule("mlp")
            before(mlp, self._enter(layer, stage))
            after(mlp, self._leave)
        return ()

    def _enter(self, layer: int, stage: ChainStage) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self.local.fed = None
            step = self.step()
            if step is None or step.layout is None or step.inside.paused:
                return None
            with torch.no_grad():
                decision = stage.decide(layer_slots(self.integration, stage, layer, step))
            if decision is None:
                return None
            if not isinstance(decision, Feed):
                raise TypeError(f"{stage.method}: a stage at an MLP must return Feed, got {decision!r}.")
            work = step.inside.work.setdefault(layer, Work())
            work.methods.add(stage.method)
            work.fed = decision.parts
            hidden, width = args[0], args[0].shape[1]
            whole = [x.slots for x in decision.parts if x.channels is None] or [listed(step).text[:, :0]]
            fewer = [(x.slots, x.channels) for x in decision.parts if x.channels is not None]
            brought = []
            for slots, channels in fewer:
                parts = self.integration.decoder_mlp(self.integration.decoder_layers[layer])
                brought.append(narrow(parts, Chosen([slots], width).take(hidden), channels))
            self.local.fed = Chosen([*whole, *(slots for slots, _ in fewer)], width), brought
            return (Chosen(whole, width).take(hidden), *args[1:]), kwargs

        return hook

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        if self.local.fed is None:
            return None
        (everyone, narrow), self.local.fed = self.local.fed, None
        return everyone.put_back(torch.cat([output, *narrow], 1))


def narrow(parts: MLP, hidden: Tensor, channels: int) -> Tensor:
    """What the first channels of a gated MLP make of hidden states (rows, n, width).

    Raises:
        ValueError: Its weights cannot be sliced.
    """
    gate, up, down, activation = parts
    for part in (gate, up, down):
        if type(part) is not nn.Linear:
            raise ValueError(
                f"only plain linear layers can be made narrower, got {type(part).__name__}: merge adapters, and load "
                "the model without quantisation."
            )
    with at_hand(gate), at_hand(up):
        first = activation(_rows_of(gate, hidden, channels)) * _rows_of(up, hidden, channels)
    with at_hand(down):
        return nn.functional.linear(first, down.weight[:, :channels], down.bias)


def _rows_of(projection: nn.Linear, hidden: Tensor, channels: int) -> Tensor:
    bias = None if projection.bias is None else projection.bias[:channels]
    return nn.functional.linear(hidden, projection.weight[:channels], bias)
