"""The ideal: the bare model, given from the start exactly the tokens that a method keeps at each place.

Nothing is decided here and nothing is searched for: what the language model is to see lies ready, and between layers
tokens leave as a plain slice. So the ideal is the lower bound for every implementation of the same method.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor

from vtprune.bench.hooks import Hooks
from vtprune.bench.plan import LayerInput, Plan
from vtprune.engine.deepstack import DeepStackRows
from vtprune.integrations import Integration, integrate
from vtprune.integrations.base import EncoderBlock
from vtprune.kernels import gather_rows


def replaying(model: Any, plan: Plan) -> Hooks:
    """Make a model without methods compute as much as a plan says, for one request and the length of a `with` block.

    The request must be the one that was recorded. Vision blocks between which tokens leave make one addition more than
    the bare model; layers without changes carry no hook.
    """
    replay = _Replay(integrate(model), plan)
    return replay.hooks


class _Replay:
    def __init__(self, integration: Integration, plan: Plan) -> None:
        self.plan = plan
        self.number = -1
        self.hooks = Hooks()
        self.layer_hooks: list[Any] = []
        self.counts = {"encoder": 0, "tower": 0, "projector": 0, "deepstack": 0}
        self.beside: Tensor | None = None  # what passes by the layer that runs
        self.encoding = False
        if plan.encoded:
            for kind in integration.modalities:
                self.hooks.replace(integration.multimodal, f"get_{kind}_features", self._encode)
        self._language_model(integration)
        for i, calls in plan.blocks.items():
            if i and any(before != left for (before, _), (_, left) in zip(calls, plan.blocks[i - 1], strict=True)):
                _ShorterInput(self.hooks, integration.encoder_blocks[i], [before for before, _ in calls])
            if any(before != after for before, after in calls):
                _ShorterBlock(self.hooks, integration.encoder_blocks[i], [after for _, after in calls])
        if plan.towers:
            self.hooks.after(integration.tower, self._tower)
        if plan.projected:
            self.hooks.before(integration.projectors[0], self._before_projector)
            self.hooks.after(integration.projectors[0], self._after_projector)

    def _language_model(self, integration: Integration) -> None:
        language_model: Any = integration.language_model
        self.hooks.before(language_model, self._enter)
        changed = sorted({i for step in self.plan.steps for i in step.layers})
        self.layer_hooks = [self.hooks.before(integration.decoder_layers[i], self._layer(i)) for i in changed]
        for i, change in self.plan.steps[0].layers.items():
            if change.passed:
                self.layer_hooks.append(self.hooks.after(integration.decoder_layers[i], self._put_back, first=True))
        if not any(step.layers for step in self.plan.steps[1:]):
            self.hooks.after(language_model, self._leave)
        if self.plan.deepstack:
            self.hooks.replace(language_model, DeepStackRows.METHOD, self._deepstack)

    def _enter(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self.number += 1
        if self.number >= len(self.plan.steps):  # a step that generate runs ahead and throws away
            return None
        return args, {**kwargs, **self.plan.steps[self.number].arguments}

    def _leave(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        # Hooks on layers are for the prefill only: decoding is as fast as the bare model's.
        while self.layer_hooks:
            self.layer_hooks.pop().remove()

    def _layer(self, index: int) -> Any:
        inputs: list[LayerInput | None] = [step.layers.get(index) for step in self.plan.steps]

        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            change = inputs[self.number] if self.number < len(inputs) else None
            if change is None:
                return None
            hidden = args[0]
            if change.passed:
                self.beside = hidden[:, : -change.slots]
            if hidden.shape[1] != change.slots:
                hidden = hidden[:, -change.slots :] if change.index is None else gather_rows(hidden, change.index)
            kwargs["attention_mask"] = change.mask
            if change.embeddings is not None:
                kwargs["position_embeddings"] = change.embeddings
            if "position_ids" in kwargs:
                kwargs["position_ids"] = None
            return (hidden, *args[1:]), kwargs

        return hook

    def _put_back(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if self.beside is None:
            return output
        hidden = torch.cat((self.beside, output[0] if isinstance(output, tuple) else output), dim=1)
        self.beside = None
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _encode(self, original: Any) -> Any:
        @functools.wraps(original)  # generate reads its signature
        def encode(*args: Any, **kwargs: Any) -> Any:
            if self.encoding:  # videos that are encoded by the method for pictures
                return original(*args, **kwargs)
            smaller = self.plan.encoded[self.counts["encoder"]]
            self.counts["encoder"] += 1
            self.encoding = True
            output = original(*args, **kwargs) if smaller is None else original(*smaller.args, **smaller.kwargs)
            self.encoding = False
            # What follows counts on the features of all tokens; the language model is given its own input anyway.
            return output if smaller is None else copy.copy(smaller.output)

        return encode

    def _deepstack(self, original: Any) -> Any:
        def process(hidden: Tensor, mask: Tensor, features: Tensor) -> Any:
            mask, features = self.plan.deepstack[self.counts["deepstack"]]
            self.counts["deepstack"] += 1
            return original(hidden, mask, features)

        return process

    def _tower(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        ready = self.plan.towers[self.counts["tower"]]
        self.counts["tower"] += 1
        if ready is not None:
            output.last_hidden_state = ready.last_hidden_state
            if output.hidden_states is not None:
                output.hidden_states = ready.hidden_states

    def _before_projector(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tokens, _ = self.plan.projected[self.counts["projector"]]
        return (args[0][:, :tokens], *args[1:]), kwargs

    def _after_projector(self, module: Any, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        # What follows counts on the features of all tokens; the language model is given its own input anyway.
        _, ready = self.plan.projected[self.counts["projector"]]
        self.counts["projector"] += 1
        return output if ready is None else ready


class _ShorterInput:
    """A vision block that gets fewer tokens than the one before it has left."""

    def __init__(self, hooks: Hooks, block: EncoderBlock, lengths: list[int]) -> None:
        self.lengths = lengths
        self.call = -1
        hooks.before(block.layer, self._enter)

    def _enter(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self.call += 1
        return (args[0][..., : self.lengths[self.call], :], *args[1:]), kwargs


class _ShorterBlock:
    """A vision block whose MLP runs on fewer tokens than its attention."""

    def __init__(self, hooks: Hooks, block: EncoderBlock, lengths: list[int]) -> None:
        self.lengths = lengths
        self.call = -1
        self.gain = None if block.gain is None else block.layer.get_parameter(block.gain)
        self.residual: Tensor | None = None
        self.output: Tensor | None = None
        hooks.before(block.before_mlp, self._before_mlp)
        hooks.after(block.mlp, self._after_mlp)
        hooks.after(block.layer, self._leave, first=True)  # captured hidden states are the shorter ones

    def _before_mlp(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self.call += 1
        self.residual = args[0][..., : self.lengths[self.call], :]
        return (self.residual, *args[1:]), kwargs

    def _after_mlp(self, module: Any, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        self.output = output if self.gain is None else self.gain * output
        return output.new_zeros(1)  # added to the residual of the old length

    def _leave(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if self.residual is None or self.output is None:
            raise RuntimeError("a vision block ran without its MLP.")
        hidden = self.residual + self.output
        self.residual = self.output = None
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
