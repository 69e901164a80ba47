"""What a method does to one prompt, as far as it decides how much is computed: recorded once, replayed as the ideal."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

import vtprune
from vtprune.bench.generate import Requested, generate
from vtprune.bench.hooks import Hooks
from vtprune.compat import build_mask
from vtprune.engine.deepstack import DeepStackRows
from vtprune.integrations import Integration, integrate
from vtprune.report import Report

ARGUMENTS = ("position_ids", "attention_mask", "visual_pos_masks", "deepstack_visual_embeds")


@dataclasses.dataclass(frozen=True)
class LayerInput:
    """What a decoder layer gets that differs from what the language model passes to all of its layers.

    Args:
        slots: Its slots.
        mask: Its attention mask, in the form that the attention implementation takes.
        embeddings: Cosine and sine of its positions; None: as the language model made them.
        index: (rows, slots), which slots of the layer before; None: the last ones, a plain slice.
        passed: Whether the slots that it does not get are there again behind it.
    """

    slots: int
    mask: Any
    embeddings: tuple[Tensor, Tensor] | None
    index: Tensor | None = None
    passed: bool = False


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A call that encodes pictures made smaller before: its arguments, and what its caller got in the end."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of the language model: arguments in the place of the caller's, and what its layers get."""

    arguments: dict[str, Any]
    layers: dict[int, LayerInput]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that the ideal needs to compute as much as the method does, and nothing that the method decides by.

    Args:
        steps: The prefill, then each step of decoding.
        encoded: Per call that encodes pictures, what is encoded instead; None where that is what was given. Empty if no
            picture was made smaller.
        blocks: Per vision block and call, tokens in its attention and in its MLP; empty if nothing leaves in between.
        towers: Per call of the tower its output, where merged patches were copied back; None where they were not.
        projected: Per call of the projector, how many tokens run through it, and what stands behind it.
        deepstack: Per call, the mask and the features that are added behind a decoder layer.
        lengths: Slots in every decoder layer in the prefill, padding included.
        report: The method's own report of the recorded run.
    """

    steps: tuple[Step, ...]
    encoded: list[Encoded | None]
    blocks: dict[int, list[tuple[int, int]]]
    towers: list[Any]
    projected: list[tuple[int, Tensor | None]]
    deepstack: list[tuple[Tensor, Tensor]]
    lengths: tuple[int, ...]
    report: Report


def record(model: Any, chain: Any, request: Requested) -> Plan:
    """Run a request with the methods and note what each part of the model is given.

    Args:
        model: A model without methods.
        chain: As for `vtprune.apply`.
        request: The request.

    Raises:
        ValueError: The prompt has no picture, or the method works in a way that cannot be replayed.
    """
    integration = integrate(model)
    recorder = _Recorder(integration)
    with recorder.inner_hooks(), vtprune.applied(model, chain), recorder.hooks():
        generate(model, request)
        report = vtprune.report(model)
    if report is None:
        raise ValueError("the prompt reached the model without a picture or a video.")
    return recorder.plan(report)


class _Recorder:
    def __init__(self, integration: Integration) -> None:
        self.integration = integration
        self.encoded: list[Encoded | None] = []
        self.encoding: list[tuple[tuple[Any, ...], dict[str, Any]]] | None = None  # calls below the one under way
        self.calls: list[dict[str, Any]] = []
        self.passed: set[int] = set()  # layers behind which there are more slots than they get
        self.layers: list[dict[int, tuple[int, Any, Any]]] = []
        self.blocks: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.entered: dict[int, int] = {}
        self.towers: list[Any] = []
        self.projected: list[tuple[int, Tensor | None]] = []
        self.deepstack: list[tuple[Tensor, Tensor]] = []

    def inner_hooks(self) -> Hooks:
        """Under the engine's own: see what is encoded, and what is added by DeepStack, in the end."""
        hooks = Hooks()
        for kind in self.integration.modalities:
            hooks.replace(self.integration.multimodal, f"get_{kind}_features", self._encode_below)
        language_model: Any = self.integration.language_model
        if DeepStackRows.used_by(language_model):
            hooks.replace(language_model, DeepStackRows.METHOD, self._deepstack)
        return hooks

    def hooks(self) -> Hooks:
        """Behind the engine's: see what its hooks have made of the arguments."""
        integration, hooks = self.integration, Hooks()
        for kind in integration.modalities:
            hooks.replace(integration.multimodal, f"get_{kind}_features", self._encode)
        hooks.before(integration.language_model, self._language_model)
        for i, layer in enumerate(integration.decoder_layers):
            hooks.before(layer, self._layer(i))
            hooks.after(layer, self._behind_layer(i))
        for i, block in enumerate(integration.encoder_blocks):
            hooks.before(block.attention, self._attention(i))
            hooks.before(block.before_mlp, self._mlp(i))
        hooks.after(integration.tower, self._tower)
        if integration.projects_tiles:
            hooks.after(integration.projectors[0], self._projector)
        return hooks

    def _encode(self, original: Any) -> Any:
        @functools.wraps(original)  # generate reads its signature
        def encode(*args: Any, **kwargs: Any) -> Any:
            if self.encoding is not None:  # videos that are encoded by the method for pictures
                return original(*args, **kwargs)
            self.encoding = []
            output = original(*args, **kwargs)
            (below, *_), self.encoding = self.encoding, None
            same = [id(x) for x in (*args, *kwargs.values())] == [id(x) for x in (*below[0], *below[1].values())]
            self.encoded.append(None if same else Encoded(*below, output))
            return output

        return encode

    def _encode_below(self, original: Any) -> Any:
        @functools.wraps(original)  # generate reads its signature
        def encode(*args: Any, **kwargs: Any) -> Any:
            if self.encoding is not None:
                self.encoding.append((args, kwargs))
            return original(*args, **kwargs)

        return encode

    def _deepstack(self, original: Any) -> Any:
        def process(hidden: Tensor, mask: Tensor, features: Tensor) -> Any:
            self.deepstack.append((mask, features))
            return original(hidden, mask, features)

        return process

    def _language_model(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        names = ARGUMENTS if self.calls else ("inputs_embeds", *ARGUMENTS)
        self.calls.append({name: kwargs[name] for name in names if name in kwargs})
        self.layers.append({})

    def _layer(self, index: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen = (args[0].shape[1], kwargs["attention_mask"], kwargs["position_embeddings"])
            if seen[0] != seen[2][0].shape[-2]:
                raise ValueError(
                    "there is no ideal where merged tokens share hidden states: a bare model attends to as many tokens "
                    "as its other parts run on; let merged tokens leave instead (unmerge=False)."
                )
            self.layers[-1][index] = seen

        return hook

    def _behind_layer(self, index: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.shape[1] > self.layers[-1][index][0]:
                self.passed.add(index)

        return hook

    def _attention(self, index: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.entered[index] = (args[0] if args else kwargs["hidden_states"]).shape[-2]

        return hook

    def _mlp(self, index: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.blocks[index].append((self.entered[index], args[0].shape[-2]))

        return hook

    def _tower(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        last = len(self.integration.encoder_blocks) - 1
        spread = self.integration.projects_tiles and output.last_hidden_state.shape[-2] != self.blocks[last][-1][1]
        self.towers.append(output if spread else None)

    def _projector(self, module: Any, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        tokens = args[0].shape[-2]
        self.projected.append((tokens, output if output.shape[-2] != tokens else None))

    def plan(self, report: Report) -> Plan:
        """What was seen, without what the method needed in order to decide."""
        steps = tuple(self._step(number) for number in range(len(self.calls)))
        merged = any(len(set(itertools.chain(*tokens))) > 1 for tokens in zip(*self.blocks.values(), strict=True))
        return Plan(
            steps=steps,
            encoded=self.encoded if any(x is not None for x in self.encoded) else [],
            blocks=dict(self.blocks) if merged else {},
            towers=self.towers if any(x is not None for x in self.towers) else [],
            projected=self.projected if any(x is not None for _, x in self.projected) else [],
            deepstack=self.deepstack if steps[0].layers else [],
            lengths=tuple(self.layers[0][i][0] for i in range(len(self.layers[0]))),
            report=report,
        )

    def _step(self, number: int) -> Step:
        arguments = dict(self.calls[number])
        mask = arguments.get("attention_mask")
        if mask is not None and bool(mask.all()):
            arguments["attention_mask"] = None
        seen = self.layers[number]
        first = seen[0]
        changed = {}
        for i, (slots, mask, embeddings) in seen.items():
            if slots == first[0] and mask is first[1] and embeddings is first[2]:
                continue
            if embeddings is first[2]:
                embeddings = None
            passed = not number and i in self.passed
            changed[i] = LayerInput(slots, self._plain_mask(mask, number, i, slots), embeddings, passed=passed)
        if number and all(x.mask is None and x.embeddings is None for x in changed.values()) and first[1] is None:
            changed = {}  # decoding without padding: no layer needs anything of its own
        return Step(arguments, changed)

    def _plain_mask(self, mask: Any, number: int, layer: int, slots: int) -> Any:
        """The mask as transformers makes it for a bare model; where nothing is padding, that is often none."""
        if mask is None:
            return None
        valid = _valid_keys(mask)
        key = (number, slots, mask.shape[-1], id(mask))
        if key not in self._masks:
            hidden = torch.empty((valid.shape[0], slots, 1), dtype=self.integration.model.dtype, device=mask.device)
            self._masks[key] = build_mask(
                self.integration.language_model.config,
                hidden,
                None if bool(valid.all()) else valid,
                valid.shape[1] - slots,
            )
        return self._masks[key]

    @property
    def _masks(self) -> dict[Any, Any]:
        return self.__dict__.setdefault("_made", {})


def _valid_keys(mask: Tensor) -> Tensor:
    """Bool (rows, keys) from a mask in any of its forms: the last query, which is never padding, sees all of them."""
    if mask.ndim == 2:
        return mask.bool()
    last = mask[:, 0, -1]
    return last if last.dtype == torch.bool else last == 0
