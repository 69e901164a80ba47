"""The engine: hooks on one model, and the state of every request that runs through them.

State of a request lives in the calling thread while a call lasts, and on the cache between calls; never on the model.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.engine.chain import Chain, ChainStage
from vtprune.engine.decoder import DecoderStep
from vtprune.engine.encoder import EncoderRun
from vtprune.engine.graphs import OutsideGraphs
from vtprune.engine.reporting import Prefill
from vtprune.integrations.base import EncoderBlock, Integration

RUN = "vtprune_run"  # attribute of the tower's outputs that carries the encoder run to the language model


class _Local(threading.local):
    """What belongs to the calls that are under way on this thread."""

    def __init__(self) -> None:
        self.encoding: EncoderRun | None = None  # from the tower's call to the projector's
        self.placeholders: Tensor | None = None  # during a call of the multimodal module
        self.run: EncoderRun | None = None
        self.step: DecoderStep | None = None  # during a call of the language model
        self.finished: DecoderStep | None = None  # the last one, for the loss
        self.logits_to_keep: Tensor | None = None
        self.prefill: Prefill | None = None


class Engine:
    """Runs a chain of methods inside a model, from `attach` to `detach`."""

    def __init__(self, integration: Integration, chain: Chain) -> None:
        self.integration = integration
        self.chain = chain
        self.local = _Local()
        self.latest: Prefill | None = None
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        self.layer_stages: dict[int, list[ChainStage]] = {}
        for stage in chain.decoder_stages:
            for layer in stage.layers:
                self.layer_stages.setdefault(layer, []).append(stage)

    # Hooks.

    def attach(self) -> None:
        """Install all hooks; on an error none stays."""
        try:
            self._attach()
        except BaseException:
            self.detach()
            raise

    def _attach(self) -> None:
        integration = self.integration
        self._before(integration.model, self._enter_model)
        self._before(integration.multimodal, self._enter_multimodal)
        self._after(integration.multimodal, self._leave_multimodal, always=True)
        self._before(integration.tower, self._enter_tower)
        self._after(integration.tower, self._leave_tower)
        self._before(integration.projector, self._enter_projector)
        self._after(integration.projector, self._leave_projector)
        self._before(integration.language_model, self._enter_language_model)
        self._after(integration.language_model, self._leave_language_model, always=True)
        for i, layer in enumerate(integration.decoder_layers):
            self._before(layer, self._at_decoder_layer(i))
            signals = sorted({s for stage in self.layer_stages.get(i + 1, ()) for s in stage.signals})
            if signals:
                self._before(layer.get_submodule("self_attn"), self._capture_rows(i, signals))
        for i, block in enumerate(integration.encoder_blocks):
            self._attach_block(i, block)
        self.loss = integration.model.__dict__.get("_loss_function")
        integration.model.loss_function = OutsideGraphs(self._loss(integration.model.loss_function))

    def _attach_block(self, index: int, block: EncoderBlock) -> None:
        stages = [s for s in self.chain.encoder_layer_stages if index in s.layers]
        last = index == len(self.integration.encoder_blocks) - 1
        attention = last and any("encoder_attention" in s.signals for s in self.chain.encoder_output_stages)
        if attention:
            self._after(block.queries, self._keep_queries)
        if attention or stages:
            self._after(block.keys, self._keep_keys(attention))
        if any(s.stage.proportional for s in self.chain.encoder_layer_stages):
            self._before(block.layer, self._weigh_keys(block))
        if stages:
            self._before(block.before_mlp, self._merge(index, block, stages))
            self._after(block.mlp, self._hold_mlp_output)
            # First of all hooks, so that captured hidden states are the merged ones.
            self._after(block.layer, self._leave_block, prepend=True)

    def _before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self.handles.append(module.register_forward_pre_hook(OutsideGraphs(hook), with_kwargs=True))

    def _after(self, module: nn.Module, hook: Callable[..., Any], prepend: bool = False, always: bool = False) -> None:
        handle = module.register_forward_hook(OutsideGraphs(hook), prepend=prepend, always_call=always)
        self.handles.append(handle)

    def detach(self) -> None:
        """Remove all hooks, last first, and everything else that `attach` left on the model."""
        while self.handles:
            self.handles.pop().remove()
        if hasattr(self, "loss"):
            if self.loss is None:
                self.integration.model.__dict__.pop("_loss_function", None)
            else:
                self.integration.model.loss_function = self.loss
            del self.loss

    # The encoder.

    def _enter_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pixel_values = _arguments(module, args, kwargs)["pixel_values"]
        if self.chain.encoder_layer_stages:
            self._refuse_checkpointing(module)
        self.local.encoding = EncoderRun(self.integration, self.chain, pixel_values)

    def _leave_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        setattr(output, RUN, self.local.encoding)

    def _keep_queries(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if (run := self.local.encoding) is not None:
            run.queries = output

    def _keep_keys(self, attention: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if (run := self.local.encoding) is not None:
                run.see_keys(output, attention)

        return hook

    def _weigh_keys(self, block: EncoderBlock) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = self.local.encoding
            if run is None or run.sizes is None:
                return None
            implementation = self.integration.encoder_attention_implementation(block)
            if implementation not in ("sdpa", "eager"):
                raise ValueError(
                    f"{self.chain.label} weighs keys by their size, which the vision tower's attention "
                    f"implementation {implementation!r} cannot; set proportional=False, or load the model with "
                    "attn_implementation={'vision_config': 'sdpa'}."
                )
            bias = run.sizes.log().to(args[0].dtype)[:, None, None, :].expand(-1, 1, run.sizes.shape[1], -1)
            if len(args) > 1:
                return (args[0], bias, *args[2:]), kwargs
            return args, {**kwargs, "attention_mask": bias}

        return hook

    def _merge(self, index: int, block: EncoderBlock, stages: list[ChainStage]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = self.local.encoding
            if run is None:
                return None
            run.merged = run.merge(index, block, stages, args[0])
            return None if run.merged is None else ((run.merged, *args[1:]), kwargs)

        return hook

    def _hold_mlp_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        run = self.local.encoding
        if run is None or run.merged is None:
            return None
        run.mlp_output = output
        return output.new_zeros(1)  # the block adds it to its residual, which has the old length

    def _leave_block(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        run = self.local.encoding
        if run is None or run.merged is None or run.mlp_output is None:
            return None
        hidden = run.merged + run.mlp_output
        run.merged = run.mlp_output = None
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _enter_projector(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self.local.encoding
        return None if run is None else ((run.before_projector(args[0]), *args[1:]), kwargs)

    def _leave_projector(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        run, self.local.encoding = self.local.encoding, None
        if run is None:
            return None
        self.local.run = run
        return run.after_projector(output)

    # The language model.

    def _enter_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.local.logits_to_keep = None
        wanted = kwargs.get("logits_to_keep")
        if not isinstance(wanted, Tensor):
            return None
        # A copy that is rewritten in place once it is known which slots are left.
        self.local.logits_to_keep = wanted.clone()
        return args, {**kwargs, "logits_to_keep": self.local.logits_to_keep}

    def _enter_multimodal(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        local, integration = self.local, self.integration
        arguments = _arguments(module, args, kwargs)
        local.run = None
        local.placeholders = integration.placeholders(arguments)
        outputs = integration.encoded_outputs(arguments)
        if outputs is None:
            return
        local.run = getattr(outputs, RUN, None)
        if local.run is None or local.run.chain is not self.chain:
            raise ValueError(
                f"these picture features were encoded without {self.chain.label}; encode pictures after vtprune.apply, "
                "and leave prefill_chunk_size unset in generate."
            )

    def _leave_multimodal(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.local.placeholders = self.local.run = None

    def _enter_language_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        local = self.local
        local.step = local.finished = None
        arguments = _arguments(module, args, kwargs)
        if not DecoderStep.needed(local.placeholders, arguments.get("past_key_values")):
            return None
        if local.placeholders is not None and self.layer_stages:
            self._refuse_checkpointing(module)
        step = DecoderStep(self.integration, self.chain, local.run, local.placeholders)
        arguments = step.enter(arguments)
        local.step = step
        return (), arguments

    def _leave_language_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        local = self.local
        step, local.step = local.step, None
        if step is None or output is None:
            return None
        local.finished = step
        if step.layout is not None:
            local.prefill = self.latest = Prefill(self.integration, self.chain, step)
        if local.logits_to_keep is not None:
            step.keep_logits(local.logits_to_keep)
        return step.leave(output)

    def _at_decoder_layer(self, index: int) -> Callable[..., Any]:
        stages = self.layer_stages.get(index, [])

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            step = self.local.step
            if step is None:
                return None
            hidden = step.before_layer(index, stages, args[0], kwargs)
            return (hidden, *args[1:]), kwargs

        return hook

    def _capture_rows(self, index: int, signals: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if (step := self.local.step) is not None:
                hidden = args[0] if args else kwargs["hidden_states"]
                for signal in signals:
                    step.capture(index, signal, hidden, *kwargs["position_embeddings"])

        return hook

    def _loss(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def loss(logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Any:
            step = self.local.finished
            if step is not None and step.moved and isinstance(labels, Tensor):
                labels = step.surviving_labels(labels)
            return original(logits, labels, *args, **kwargs)

        return loss

    def _refuse_checkpointing(self, module: Any) -> None:
        if module.training and any(getattr(m, "gradient_checkpointing", False) for m in module.modules()):
            raise ValueError(
                f"{self.chain.label} removes tokens between layers, which gradient checkpointing would run twice; "
                "call model.gradient_checkpointing_disable(), or use a method at the encoder's output."
            )


_SIGNATURES: dict[type, inspect.Signature] = {}


def _arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A module's call as keyword arguments."""
    if not args:
        return dict(kwargs)
    signature = _SIGNATURES.setdefault(type(module), inspect.signature(type(module).forward))
    names = list(signature.parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}
