"""The engine: hooks on one model, and the state of every request that runs through them.

State of a request lives in the calling thread while a call lasts, and on the cache between calls; never on the model.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vtprune.compat import encoder_arguments
from vtprune.engine.attending import AttentionHooks
from vtprune.engine.blocks import BlockHooks
from vtprune.engine.calls import call_arguments
from vtprune.engine.chain import Chain
from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.decoder import DecoderStep, inputs_of
from vtprune.engine.deepstack import DeepStackRows
from vtprune.engine.devices import at_module
from vtprune.engine.encoder import EncoderRun
from vtprune.engine.eviction_hooks import EvictionHooks
from vtprune.engine.feeding import FeedingHooks
from vtprune.engine.graphs import OutsideGraphs
from vtprune.engine.layout import VisualLayout, lay_out
from vtprune.engine.logits import keep_logits, surviving_labels
from vtprune.engine.neurons import NeuronHooks
from vtprune.engine.reporting import Prefill
from vtprune.engine.sharing import Sharing, SharingHooks
from vtprune.engine.slots import Slots
from vtprune.engine.turns import before_turn
from vtprune.integrations.base import EncoderCall, Integration, Kind
from vtprune.methods.base import Observation

RUN = "vtprune_run"  # attribute of encoder outputs that carries the encoder run to the language model


class _Local(threading.local):
    """What belongs to the calls that are under way on this thread."""

    def __init__(self) -> None:
        self.encoding: EncoderRun | None = None  # during a call of get_image_features or get_video_features
        self.given: dict[Kind, EncoderRun] = {}  # those of the encoder outputs that the model was called with
        self.prompt: dict[str, Any] | None = None  # arguments of the multimodal module, during its call
        self.on_host: dict[str, Tensor] = {}  # copies of its token ids and its mask, if it was given pictures
        self.runs: dict[Kind, EncoderRun] = {}  # what that call encoded, or was given
        self.step: DecoderStep | None = None  # during a call of the language model
        self.finished: Slots | None = None  # what the last one left, for the loss
        self.logits_to_keep: Tensor | None = None
        self.prefill: Prefill | None = None


class Engine:
    """Runs a chain of methods inside a model, from `attach` to `detach`."""

    def __init__(self, integration: Integration, chain: Chain) -> None:
        self.integration = integration
        self.chain = chain
        self.local = _Local()
        self.latest: Prefill | None = None
        self.handles: list[Any] = []  # of hooks, and of what else can be removed
        self.methods: list[tuple[Any, str, Any]] = []  # replaced methods of modules: module, name, what stood there
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
        self._after(integration.model, self._leave_model, always=True)
        self._before(integration.multimodal, self._enter_multimodal)
        self._after(integration.multimodal, self._leave_multimodal, always=True)
        for kind in integration.modalities:
            self._replace_method(integration.multimodal, f"get_{kind}_features", functools.partial(self._encode, kind))
        self._after(integration.tower, self._leave_tower)
        self._before(integration.projectors[0], self._enter_projector)
        self._after(integration.projectors[0], self._leave_projector)
        self._before(integration.language_model, self._enter_language_model)
        self._after(integration.language_model, self._leave_language_model, always=True)
        for i, layer in enumerate(integration.decoder_layers):
            self._before(layer, self._at_decoder_layer(i))
            signals = sorted({x for stage in self.layer_stages.get(i + 1, ()) for x in stage.captured})
            if signals:
                self._before(layer.get_submodule("self_attn"), self._capture_rows(i, signals))
            for method, observation in self.chain.observations:
                if i in observation.layers:
                    hook = self._observe(i, method, observation)
                    self._after(layer.get_submodule(observation.module), hook, with_kwargs=True)
            if self.chain.skipping is not None and i in self.chain.skipping.stage.skips:
                # First of all hooks, so that a captured hidden state is the whole one.
                self._after(layer, self._behind_decoder_layer, prepend=True)
        for inside in (AttentionHooks, FeedingHooks):
            self.handles += inside(integration, self.chain, lambda: self.local.step).attach(self._before, self._after)
        NeuronHooks(integration, self.chain, lambda: self.local.step).attach(self._before, self._replace_method)
        for i in self.chain.attention_stages:  # what a compiled attention computes was settled when it was compiled
            self._replace_method(integration.decoder_layers[i].get_submodule("self_attn"), "forward", OutsideGraphs)
        EvictionHooks(integration, self.chain, lambda: self.local.step).attach(self._before, self._after)
        if self.chain.shares:
            SharingHooks(integration, self._sharing).attach(self._before, self._after)
        blocks = BlockHooks(integration, self.chain, lambda: self.local.encoding)
        for i, block in enumerate([*integration.encoder_blocks, *integration.unused_encoder_blocks]):
            blocks.attach(i, block, self._before, self._after)
        if (self.layer_stages or self.chain.shares) and DeepStackRows.used_by(integration.language_model):
            self._replace_method(integration.language_model, DeepStackRows.METHOD, self._deepstack)
        self.loss = integration.model.__dict__.get("_loss_function")
        integration.model.loss_function = OutsideGraphs(self._loss(integration.model.loss_function))

    def _before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self.handles.append(module.register_forward_pre_hook(OutsideGraphs(hook), with_kwargs=True))

    def _after(
        self,
        module: nn.Module,
        hook: Callable[..., Any],
        prepend: bool = False,
        always: bool = False,
        with_kwargs: bool = False,
    ) -> None:
        handle = module.register_forward_hook(
            OutsideGraphs(hook), prepend=prepend, always_call=always, with_kwargs=with_kwargs
        )
        self.handles.append(handle)

    def _replace_method(self, module: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        """Put a wrapper in the place of a module's method, for this module only."""
        self.methods.append((module, name, module.__dict__.get(name)))
        setattr(module, name, wrap(getattr(module, name)))

    def detach(self) -> None:
        """Remove all hooks, last first, and everything else that `attach` left on the model."""
        while self.handles:
            self.handles.pop().remove()
        while self.methods:
            module, name, earlier = self.methods.pop()
            delattr(module, name)
            if earlier is not None:
                setattr(module, name, earlier)
        if hasattr(self, "loss"):
            if self.loss is None:
                self.integration.model.__dict__.pop("_loss_function", None)
            else:
                self.integration.model.loss_function = self.loss
            del self.loss

    # The encoder.

    def _encode(self, kind: Kind, original: Callable[..., Any]) -> Callable[..., Any]:
        """A `get_image_features` or `get_video_features` that is one encoder run."""
        signature = inspect.signature(original)
        enter, leave = OutsideGraphs(self._enter_encoder), OutsideGraphs(self._leave_encoder)

        @functools.wraps(original)
        def encode(*args: Any, **kwargs: Any) -> Any:
            if self.local.encoding is not None:  # videos that are encoded by the method for pictures
                return original(*args, **kwargs)
            bound = signature.bind(*args, **kwargs).arguments
            other = enter(EncoderCall(kind, encoder_arguments(kind, {**bound, **bound.pop("kwargs", {})})))
            try:
                output = original(*args, **kwargs) if other is None else original(**other)
            except BaseException:
                self.local.encoding = None
                raise
            leave(output)
            return output

        return encode

    def _enter_encoder(self, call: EncoderCall) -> dict[str, Any] | None:
        """Begin a run; returns arguments of a call to be made instead, if pictures become smaller."""
        if self.chain.encoder_layer_stages:
            self._refuse_checkpointing(self.integration.tower)
        self.integration.check(call)
        run = EncoderRun(self.integration, self.chain, call)
        smaller = run.shrink()
        self.local.encoding = run
        return dict(run.call.arguments) if smaller else None

    def _leave_encoder(self, output: Any) -> None:
        run, self.local.encoding = self.local.encoding, None
        if run is None:
            return
        if run.covers is not None:
            if isinstance(output, tuple):
                raise ValueError(f"{self.chain.label} needs return_dict=True where pictures are encoded.")
            self.integration.spread_units(output, run.covers)
        run.finish()
        self.local.runs[run.call.kind] = run
        if not isinstance(output, tuple):
            setattr(output, RUN, run)

    def _leave_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run = self.local.encoding
        if run is None or run.tokens.owner is None or not run.joins_patches:
            return
        output.last_hidden_state = run.spread(output.last_hidden_state)
        if output.hidden_states is not None:
            first = min(layer for stage in self.chain.encoder_layer_stages for layer in stage.layers)
            states = enumerate(output.hidden_states)  # the output of a block stands one place behind its index
            output.hidden_states = tuple(x if x is None or i <= first else run.spread(x) for i, x in states)

    def _enter_projector(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self.local.encoding
        if run is None or not self.integration.projects_tiles:
            return None
        return (run.before_projector(args[0]), *args[1:]), kwargs

    def _leave_projector(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        run = self.local.encoding
        return None if run is None or run.features is None else run.after_projector(output)

    # The language model.

    def _enter_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.local.logits_to_keep = None
        # accelerate may move the encoder's outputs before they come to the multimodal module, without their runs.
        outputs = call_arguments(module, args, kwargs).get("mm_encoder_outputs") or {}
        self.local.given = {kind: run for kind, x in outputs.items() if (run := getattr(x, RUN, None)) is not None}
        wanted = kwargs.get("logits_to_keep")
        if not isinstance(wanted, Tensor):
            return None
        # A copy that is rewritten in place once it is known which slots are left.
        self.local.logits_to_keep = wanted.clone()
        return args, {**kwargs, "logits_to_keep": self.local.logits_to_keep}

    def _leave_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.local.given = {}

    def _enter_multimodal(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        local, integration = self.local, self.integration
        local.prompt = prompt = call_arguments(module, args, kwargs)
        local.runs = {}
        local.on_host = {}
        given = prompt.get("mm_encoder_outputs") or {}
        if given or any(x is not None for name, x in prompt.items() if name.startswith("pixel_values")):
            # Now, while a GPU has nothing to do yet: later the host would wait for the whole encoder.
            for name in ("input_ids", "attention_mask"):
                if isinstance(x := prompt.get(name), Tensor):
                    local.on_host[name] = x.cpu()
        for kind in integration.modalities:
            if given.get(kind) is None:
                continue
            run = getattr(given[kind], RUN, None) or local.given.get(kind)
            if run is None or run.chain is not self.chain:
                raise ValueError(
                    f"these {kind} features were encoded without {self.chain.label}; encode pictures after "
                    "vtprune.apply, and leave prefill_chunk_size unset in generate."
                )
            local.runs[kind] = run

    def _leave_multimodal(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.local.prompt = None
        self.local.runs = {}
        self.local.on_host = {}

    def _enter_language_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        local = self.local
        local.step = local.finished = None
        arguments = call_arguments(module, args, kwargs)
        if not DecoderStep.needed(local.runs, arguments.get("past_key_values")):
            return None
        layout = None
        if local.runs and local.prompt is not None:
            if self.layer_stages or self.chain.shares or self.chain.skipping is not None or self.chain.acts_inside:
                self._refuse_checkpointing(module)
            layout = self._lay_out(local.prompt, local.on_host, local.runs, arguments)
        step = DecoderStep(self.integration, self.chain, layout)
        same_mask = local.prompt is not None and arguments.get("attention_mask") is local.prompt.get("attention_mask")
        step.begin(arguments)
        before_turn(self.integration, self.chain.turn_stages, step)
        arguments = step.enter(arguments, local.on_host.get("attention_mask") if same_mask else None)
        local.step = step
        return (), arguments

    def _lay_out(
        self,
        prompt: dict[str, Any],
        on_host: dict[str, Tensor],
        runs: dict[Kind, EncoderRun],
        arguments: dict[str, Any],
    ) -> VisualLayout:
        integration = self.integration
        ids = on_host.get("input_ids")
        known = prompt if ids is None else {"input_ids": ids}
        placeholders = {kind: integration.placeholders(kind, known).cpu().numpy() for kind in runs}
        seconds = integration.frame_seconds(prompt) if "video" in runs else None
        if seconds is not None:
            runs["video"].time_frames(seconds)
        return lay_out(integration, runs, placeholders, ids, inputs_of(arguments).device)

    def _leave_language_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        local = self.local
        step, local.step = local.step, None
        if step is None or output is None:
            return None
        local.finished = step.slots
        if step.layout is not None:
            local.prefill = self.latest = Prefill(self.integration, self.chain, step)
        if local.logits_to_keep is not None:
            keep_logits(local.logits_to_keep, step.slots, step.original_length, self.chain.label)
        return step.leave(output)

    def _at_decoder_layer(self, index: int) -> Callable[..., Any]:
        stages = self.layer_stages.get(index, [])

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            step = self.local.step
            if step is None:
                return None
            self.local.step = None  # no hook acts in layers that run on trial
            try:
                hidden = step.before_layer(index, stages, at_module(module, args[0]), kwargs)
            finally:
                self.local.step = step
            return (hidden, *args[1:]), kwargs

        return hook

    def _behind_decoder_layer(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return None if self.local.step is None else self.local.step.behind_layer(output)

    def _sharing(self) -> Sharing | None:
        return None if self.local.step is None else self.local.step.sharing

    def _capture_rows(self, index: int, signals: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if (step := self.local.step) is not None:
                hidden = args[0] if args else kwargs["hidden_states"]
                for signal in signals:
                    step.capture(index, signal, hidden, kwargs["position_embeddings"])

        return hook

    def _observe(self, index: int, method: str, observation: Observation) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if (step := self.local.step) is not None:
                given = args[0] if args else kwargs["hidden_states"]
                step.observe(method, observation, index, given, output[0] if isinstance(output, tuple) else output)

        return hook

    def _deepstack(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def process(hidden: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Any:
            step = self.local.step
            if step is not None and step.deepstack is not None and step.picture is not None:
                picture = step.picture if step.sharing is None else step.sharing.take(step.picture)
                visual_pos_masks = picture >= 0
                visual_embeds = step.deepstack.select(visual_pos_masks, visual_embeds)
            return original(hidden, visual_pos_masks, visual_embeds)

        return OutsideGraphs(process)

    def _loss(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def loss(logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Any:
            slots = self.local.finished
            if slots is not None and isinstance(labels, Tensor):
                labels = surviving_labels(labels, slots)
            return original(logits, labels, *args, **kwargs)

        return loss

    def _refuse_checkpointing(self, module: Any) -> None:
        if module.training and any(getattr(m, "gradient_checkpointing", False) for m in module.modules()):
            raise ValueError(
                f"{self.chain.label} changes how many tokens run between layers, which gradient checkpointing would do "
                "twice; call model.gradient_checkpointing_disable(), or use a method at the encoder's output."
            )
