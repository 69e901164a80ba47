"""Stages at the attention of decoder layers: what they decide is computed in the place of the layer's own attention.

A stage says which slots attend to what, as lists; the products are torch's dense kernels on gathered tensors, whatever
attention implementation the model has. Where a stage decides without looking at queries, the query and the output
projection run on the slots that need them.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.engine.cache import Record, VisualCacheLayer, is_visual
from vtprune.engine.chain import Chain
from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.decoder import DecoderStep
from vtprune.engine.devices import moved
from vtprune.engine.interception import Intercepted, dropout_of, missed
from vtprune.engine.parts import attend
from vtprune.engine.slot_lists import SlotLists
from vtprune.engine.work import Chosen, Work
from vtprune.integrations.base import Integration
from vtprune.methods.base import Attend, LayerSlots, Part


class _Local(threading.local):
    running: int | None = None  # the layer whose attention runs; its projections may be asked behind it, too


class AttentionHooks:
    """Hooks on the decoder layers at whose attention stages act; no forward is copied.

    Args:
        integration: The model's family.
        chain: Its stages.
        step: The call of the language model that is under way on this thread; None for none that concerns the engine.
    """

    def __init__(self, integration: Integration, chain: Chain, step: Callable[[], DecoderStep | None]) -> None:
        self.integration = integration
        self.stages = chain.attention_stages
        self.step = step
        self.local = _Local()

    def attach(self, before: Callable[..., None], after: Callable[..., None]) -> Sequence[Intercepted]:
        """Put the hooks on their modules; `before` and `after` register one before a module's forward, and behind.

        Returns:
            What else has to be removed.
        """
        taken = []
        for layer in sorted(self.stages):
            block = self.integration.decoder_layers[layer]
            attention = block.get_submodule("self_attn")
            config = Intercepted(attention)
            taken.append(config)
            before(attention, self._enter(layer, config))
            after(attention, self._leave(config))
            (queries, *_), output = self.integration.decoder_projections(block)
            for module, which in ((queries, "asked"), (output, "given")):
                before(module, self._shorten(layer, which))
                after(module, self._put_back(layer, which))
        return taken

    def _enter(self, layer: int, config: Intercepted) -> Callable[..., None]:
        stage = self.stages[layer]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            config.compute(None)
            self.local.running = layer
            step = self.step()
            if step is None or not _acts(stage, layer, step):
                return
            shown = layer_slots(self.integration, stage, layer, step)
            scale = self.integration.decoder_scale(self.integration.decoder_layers[layer])
            valid, dropout = shown.valid, dropout_of(module)

            def compute(parts: tuple[Part, ...], queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
                return attend(queries, keys, values, parts, valid=valid, scale=scale, dropout=dropout)

            if stage.sees_queries_keys_values:

                def instead(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor | None:
                    seen = dataclasses.replace(
                        shown, queries=queries.detach(), keys=keys.detach(), values=values.detach(), scale=scale
                    )
                    parts = _decided(stage, layer, step, seen)
                    return None if parts is None else compute(parts, queries, keys, values)

                config.compute(instead)
                return
            parts = _decided(stage, layer, step, shown)
            if parts is None:
                return
            work, width = step.inside.work[layer], step.slots.width
            work.asked = _chosen([p for p in parts if not p.itself], width)
            work.given = _chosen(parts, width)
            config.compute(lambda queries, keys, values: compute(parts, queries, keys, values))

        return hook

    def _leave(self, config: Intercepted) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.local.running = None
            missed(config)

        return hook

    def _work(self, layer: int, which: str) -> Chosen | None:
        step = self.step()
        running = step is not None and not step.inside.paused and self.local.running == layer
        work = step.inside.work.get(layer) if step is not None and running else None
        return None if work is None else getattr(work, which)

    def _shorten(self, layer: int, which: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            chosen = self._work(layer, which)
            return None if chosen is None else ((chosen.take(args[0]), *args[1:]), kwargs)

        return hook

    def _put_back(self, layer: int, which: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            chosen = self._work(layer, which)
            return None if chosen is None else chosen.put_back(output)

        return hook


def _acts(stage: ChainStage, layer: int, step: DecoderStep) -> bool:
    """Whether a stage acts in a call: where there are new pictures, or on a cache that it has seen before."""
    if step.inside.paused:
        return False
    if step.layout is not None:
        return True
    if not stage.stage.decodes or step.cache is None:
        return False
    held: Any = step.cache.layers[layer]
    return isinstance(held, VisualCacheLayer) and held.noted is not None and stage.method in held.noted.memory


def listed(step: DecoderStep) -> SlotLists:
    """The slots that are left, as stages inside the layers see them."""
    lists = step.inside.lists
    if lists is None or lists.slots is not step.slots:
        texts = step.texts if step.layout is not None else step.slots.counts
        lists = step.inside.lists = SlotLists(step.slots, step.layout, texts, step.device)
    return lists


def layer_slots(integration: Integration, stage: ChainStage, layer: int, step: DecoderStep) -> LayerSlots:
    """What a stage inside a layer sees, but for queries, keys and values."""
    past, lists = step.past_length[layer], listed(step)
    record = _record(integration, stage, layer, step, past) if stage.stage.decodes and step.cache is not None else None
    visual = nn.functional.pad(lists.is_visual, (past, 0))[:, None] if record is None else record.candidate
    return LayerSlots(
        layer=layer,
        past=past,
        heads=integration.decoder_heads,
        kv_heads=integration.decoder_kv_heads,
        text=lists.text,
        visual=lists.visual,
        visual_entries=visual,
        valid=moved(step.rows[layer].valid, step.device),
        memory=step.memory.setdefault(stage.method, {}),
        held={} if record is None else record.memory.setdefault(stage.method, {}),
        where=lists.where if stage.sees_cells else None,
    )


def _record(integration: Integration, stage: ChainStage, layer: int, step: DecoderStep, past: int) -> Record:
    """What is known of a layer's entries, those of this call included, which the layer does not hold yet."""
    if not is_visual(step.cache):
        step.link_rows()
    held: Any = step.cached[layer]
    new = listed(step).is_visual
    rows = len(new)
    if held.noted is None:
        before = new.new_zeros(rows, integration.decoder_kv_heads, past)
        held.noted = Record(before, new.new_zeros(rows, dtype=torch.long))
    record: Record = held.noted
    unseen = past - record.candidate.shape[2]
    if unseen > 0:  # of calls in which no stage acted
        nothing = new.new_zeros(rows, unseen)
        record.extend(nothing, nothing[:, 0], new.new_zeros(rows, past - unseen))
    record.extend(new, new.any(1), new.new_zeros(rows, past))
    return record


def _decided(stage: ChainStage, layer: int, step: DecoderStep, shown: LayerSlots) -> tuple[Part, ...] | None:
    """What a stage decides; remembered for the report."""
    with torch.no_grad():
        decision = stage.decide(shown)
    if decision is None:
        return None
    if not isinstance(decision, Attend):
        raise TypeError(f"{stage.method}: a stage at the attention must return Attend, got {decision!r}.")
    work = step.inside.work.setdefault(layer, Work())
    work.methods.add(stage.method)
    work.parts = tuple(dataclasses.replace(part, sees=None, lost=None) for part in decision.parts)
    return decision.parts


def _chosen(parts: Sequence[Part], width: int) -> Chosen | None:
    """The slots of some parts; None if these are all slots, or differ by heads."""
    lists = {id(part.slots): part.slots for part in parts}.values()
    known = [x for x in lists if x is not None and x.shape[1] == 1]
    if len(known) < len(lists) or sum(x.flatten(1).shape[1] for x in known) >= width:
        return None
    return Chosen(known, width)
