"""One call of the language model: removes slots at its door and between its layers, and keeps everything in step.

Slots are the places of the sequence. The door is the call of the language model, where the slots of dropped visual
tokens leave first. Every later removal gives the layers behind it a shorter sequence, and with it a mask, position
embeddings and cache rows of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vtprune.compat import Cache
from vtprune.engine.cache import PhysicalCache, Rows, cache_of, divide_rows, is_visual, link_rows, physical_length
from vtprune.engine.chain import Chain
from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.deepstack import DeepStackRows
from vtprune.engine.devices import moved
from vtprune.engine.door import decide, marks, owners, running, staying
from vtprune.engine.encoder import EncoderRun
from vtprune.engine.events import Event, Marked
from vtprune.engine.hiding import hide
from vtprune.engine.layer_inputs import LayerInputs
from vtprune.engine.layout import VisualLayout
from vtprune.engine.observing import Observed
from vtprune.engine.positions import dense_positions
from vtprune.engine.selection import Selected
from vtprune.engine.sharing import Sharing
from vtprune.engine.showing import show
from vtprune.engine.signals import Rotation, Signals, on_all_rows
from vtprune.engine.skipping import Short, Skipping
from vtprune.engine.slots import Slots, arrived
from vtprune.engine.trial import Tried, try_out, worth_trying
from vtprune.engine.visual import Visual, visual_slots
from vtprune.engine.work import Inside
from vtprune.integrations.base import Integration, Kind
from vtprune.kernels import compact_index, gather_rows, ragged_compact
from vtprune.methods.base import Keep, Observation, Positions


class DecoderStep:
    """State of one call of the language model.

    Attributes:
        slots: The slots that are left.
        candidates: Per row, number of visual slots that are left and no newlines.
        positions: (axes, rows, slots now), position ids.
        sharing: Which slots share a hidden state; None if none do.
        lengths: Per decoder layer, slots per row that are no padding, and cached slots before them.
        inside: What is computed in decoder layers that compute less on these.
    """

    def __init__(self, integration: Integration, chain: Chain, layout: VisualLayout | None) -> None:
        self.integration = integration
        self.chain = chain
        self.layout = layout
        self.selected: list[Selected] = []
        self.deepstack: DeepStackRows | None = None
        self.sharing: Sharing | None = None
        self.skipping: Skipping | None = None
        self.whole: tuple[Short, Tensor, Any] | None = None  # in a layer that tokens pass by: what there is beside it
        self.eviction: Any = None  # what the stages at the cache do, see `vtprune.engine.eviction`
        self.events: list[Event] = []
        self.memory: dict[str, Any] = {}
        self.signals = Signals(integration, chain.attention_stages)
        self.observed = Observed()
        self.marks: dict[str, Tensor] = {}  # by method, (rows, slots of the call)
        self.moved = False  # whether slots have left at all
        self.compacted = False  # whether slots have left, or are hidden, since the language model made its mask
        self.lengths: dict[int, tuple[list[int], int]] = {}
        self.tried: list[Tried] = []
        self.deep: list[Tensor] = []  # DeepStack features of the visual slots that came through the door
        self.inside = Inside()
        self.visual: tuple[Slots, Visual] | None = None  # what was seen last
        self.inputs = LayerInputs(integration)

    @staticmethod
    def needed(runs: Mapping[Kind, EncoderRun], cache: Cache | None) -> bool:
        """Whether a call of the language model concerns the engine: new pictures, or a cache that lost some."""
        return bool(runs) or is_visual(cache)

    # The door.

    def begin(self, arguments: dict[str, Any]) -> None:
        """Look at the language model's arguments, and at what the cache holds until now."""
        inputs = inputs_of(arguments)
        self.batch, self.original_length = inputs.shape[:2]
        self.device = inputs.device
        self.cache: Cache | None = cache_of(self.integration.language_model, arguments)
        self.past = self.cache.get_seq_length() if self.cache is not None else 0
        layers = len(self.integration.decoder_layers)
        self.rows = [held.rows for held in self.cached] if is_visual(self.cache) else [Rows(0)] * layers

    def enter(self, arguments: dict[str, Any], mask_on_host: Tensor | None = None) -> dict[str, Any]:
        """Change the language model's arguments: fewer slots, their positions and mask, the physical cache.

        Args:
            arguments: Of the language model.
            mask_on_host: Copy of its 2-D mask, if there is one already.
        """
        past = self.past
        self.past_shift = [rows.shift for rows in self.rows]
        self.past_length = [physical_length(self.cache, i) for i in range(len(self.rows))]
        mask = arguments.get("attention_mask")
        padded_before = self.rows[0].valid is not None
        self.slots = arrived(
            self.chain.label, self.batch, self.original_length, mask, mask_on_host, padded_before, self.device
        )
        self.original_lengths = self.slots.counts
        if mask is not None and past and not is_visual(self.cache):
            earlier = mask[:, : -self.original_length].bool().to(self.device)
            self.rows[0].valid = None if bool(earlier.all()) else earlier
        positions = arguments.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + self.original_length, device=self.device)[None]
        plain = positions.ndim == 2
        self.positions = positions.to(self.device).reshape(-1, *positions.shape[-2:]).expand(-1, self.batch, -1)
        if self.rows[0].shift is not None:
            self.positions = self.positions - self.rows[0].shift[:, None].to(self.device)
        keep = None if self.layout is None else self._decide(self.layout, arguments)
        for rows in dict.fromkeys(self.rows):
            rows.extend(self.batch, self.past_length[rows.leader], self.original_length, self.slots.valid, self.device)
        if keep is not None:
            names = [name for name in ("input_ids", "inputs_embeds") if arguments.get(name) is not None]
            left = self._compact(keep, 0, self.chain.door_positions, [arguments[name] for name in names])
            if left is not None:
                arguments.update(zip(names, left, strict=True))
                self._drop_deepstack(arguments)
                self.compacted = False
        self.deep = DeepStackRows.levels(arguments)
        if self.moved or is_visual(self.cache):
            arguments["position_ids"] = self.positions[0] if plain else self.positions
            mask = self.rows[0].valid
            if mask is None and self.cache is None:
                # Without a cache and a mask, transformers takes gaps in position ids for packed sequences.
                mask = torch.ones(self.batch, self.slots.width, dtype=torch.bool, device=self.device)
            arguments["attention_mask"] = mask
            if self.cache is not None and is_visual(self.cache):
                arguments["past_key_values"] = PhysicalCache(self.cache)
        return arguments

    def _decide(self, layout: VisualLayout, arguments: dict[str, Any]) -> Tensor | None:
        """Let the stages at the door decide, on the slots of the call; returns what stays of these, None for all."""
        self.candidates = layout.tokens
        visual: Tensor | None = arguments.get("visual_pos_masks")
        self.deepstack = None if visual is None else DeepStackRows(visual)
        self.selected, self.events = decide(self.chain, layout, arguments, self.slots.valid)
        self.marks = marks(layout, self.selected)
        if self.chain.skipping is not None:
            runs = running(layout, self.selected)
            self.skipping = None if runs is None else Skipping(runs, self.chain.skipping.stage.skips)
        if not self.chain.shares:
            return staying(layout, self.selected)
        self.sharing = Sharing.of(owners(layout, self.selected), self.slots)
        if self.sharing is not None and self.deepstack is not None:
            self.deepstack.compact(self.sharing.slot)
        return None

    def _drop_deepstack(self, arguments: dict[str, Any]) -> None:
        if self.deepstack is None or self.picture is None:
            return
        mask, levels = self.picture >= 0, DeepStackRows.levels(arguments)
        arguments["deepstack_visual_embeds"] = [self.deepstack.select(mask, level) for level in levels]
        arguments["visual_pos_masks"] = mask
        self.deepstack = DeepStackRows(mask)

    @property
    def cached(self) -> list[Any]:
        """The layers of the cache; none without one."""
        return self.cache.layers if self.cache is not None else []

    # What the slots that are left are, (rows, slots now); None in a call without pictures, or without newlines.

    @property
    def picture(self) -> Tensor | None:
        """Number of the picture; -1 on text and padding."""
        return None if self.layout is None else self.slots.on(self.layout.picture)

    @property
    def newline(self) -> Tensor | None:
        """Bool, newline tokens."""
        return None if self.layout is None or self.layout.newlines is None else self.slots.on(self.layout.newlines)

    # Removing slots.

    def _compact(
        self, keep: Tensor, layer: int, positions: Positions, tensors: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """Remove slots for the layers from `layer` on.

        Args:
            keep: Bool (rows, slots now).
            layer: The first layer that does not see them.
            positions: The rule for position ids.
            tensors: What holds something for every slot, (rows, slots now, ...).

        Returns:
            The tensors without the slots; None if all remain.
        """
        before = self.slots
        if before.valid is not None:
            keep = keep & before.valid
        counts, newlines = self._count(keep)
        if counts == before.counts:
            return None
        if 0 in counts and 0 not in before.counts:
            raise ValueError("nothing is left of a prompt without text once visual tokens leave: give it some text.")
        self.candidates = [left - text - n for left, text, n in zip(counts, self.texts, newlines, strict=True)]
        divide_rows(self.rows, layer)
        self.link_rows()
        shift: Tensor | None = None
        if positions == "compact":
            dropped = ~keep if before.valid is None else ~keep & before.valid
            self.positions, shift = dense_positions(self.positions, dropped, self.picture)
        length = max(counts)
        padded = length != min(counts)
        moving = [self.positions.movedim(0, -1), *tensors]
        apart = any(x.device != keep.device or (x.requires_grad and torch.is_grad_enabled()) for x in tensors)
        if apart:  # layers on several devices; training
            index, valid = compact_index(keep, width=length, padded=padded)
            moving = [gather_rows(x, index) for x in moving]
        else:
            index, valid, moving = ragged_compact(keep, moving, width=length, padded=padded)
        self.positions = moving[0].movedim(-1, 0)
        if valid is not None:
            self.positions = self.positions.masked_fill(~valid, 0)
        for rows in dict.fromkeys(self.rows[layer:]):
            rows.replace_tail(self.batch, self.past_length[rows.leader], length, valid, self.device)
            rows.removed += before.width - length
            if self.layout is not None:
                rows.removal_end = max(self.past + self.layout.end, rows.removal_end)
            if shift is not None:
                rows.subtract(shift)
        self.slots = Slots(length, counts, valid, index if before.index is None else before.index.gather(1, index))
        if self.deepstack is not None:
            self.deepstack.compact(index)
        self.signals.compact(index)
        self.observed.compact(index)
        self.compacted = self.moved = True
        self.inputs.clear()
        return moving[1:]

    def _count(self, keep: Tensor) -> tuple[list[int], list[int]]:
        """Per row, how many slots stay, and how many newlines among them; the one time that the host waits."""
        if self.newline is None:
            return keep.sum(1).tolist(), [0] * self.batch
        counts, newlines = torch.stack((keep.sum(1), (keep & self.newline).sum(1))).tolist()
        return counts, newlines

    @property
    def texts(self) -> list[int]:
        """Per row, number of text slots."""
        if self.layout is None:
            return self.original_lengths
        visual = self.layout.visual.sum(1).tolist()
        return [length - n for length, n in zip(self.original_lengths, visual, strict=True)]

    def link_rows(self) -> None:
        """Let the cache's layers know their rows, in a cache that keeps two lengths."""
        if self.cache is not None:
            link_rows(self.cache, self.rows, self.chain.label)

    # Between the layers.

    def before_layer(self, layer: int, stages: list[ChainStage], hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Run the stages at a layer's input; returns its hidden states and puts its mask and positions in `kwargs`."""
        if hidden.device != self.device:
            self._move(hidden.device)
        for stage in stages:
            hidden = self._run(stage, layer, hidden, kwargs)
        self.signals.clear()
        if self.skipping is not None and layer in self.skipping.layers:
            hidden = self._shorten(layer, self.skipping, hidden)
        self.lengths[layer] = (self.slots.counts, self.past_length[layer])
        own = self.rows[layer] is not self.rows[0]
        if self.compacted or own:
            kwargs["attention_mask"] = self._mask(layer, hidden)
        if self.compacted or self.past_shift[layer] is not self.past_shift[0]:
            kwargs["position_embeddings"] = self._rotation(layer, hidden)
        # The rotary embedding carries the positions; gaps in the ids would look like packed sequences.
        if "position_ids" in kwargs:
            kwargs["position_ids"] = None
        return hidden

    def _move(self, device: torch.device) -> None:
        """Go to the device of the next layer, with all that is known of the slots."""
        before, self.slots = self.slots, self.slots.moved(device)
        self.positions = self.positions.to(device)
        self.layout = None if self.layout is None else dataclasses.replace(self.layout, device=device)
        if self.deepstack is not None:
            self.deepstack.row = self.deepstack.row.to(device)
        if self.sharing is not None:
            self.sharing.move(device)
        if self.skipping is not None:
            self.skipping.move(device, before, self.slots)
        self.marks, self.memory = moved(self.marks, device), moved(self.memory, device)
        self.inputs.clear()
        self.device = device

    def _shorten(self, layer: int, skipping: Skipping, hidden: Tensor) -> Tensor:
        """Let slots pass by a layer, until `behind_layer`."""
        short = skipping.short(self.slots, self.positions, self.integration)
        if short is None or self.layout is None or self.chain.skipping is None:
            return hidden
        fewer, end = self.slots.width - short.slots.width, self.past + self.layout.end
        self.rows[layer] = skipping.rows_of(layer, self.rows, short, self.past_length[layer], fewer, end)
        self.link_rows()
        visual = self.slots.on(self.layout.picture) >= 0
        self.events.append(Marked(self.chain.skipping, layer, [visual], [visual & short.runs], self.slots.index))
        self.whole = short, hidden, (self.slots, self.positions, self.inputs, self.compacted)
        self.slots, self.positions, self.inputs, self.compacted = short.slots, short.positions, short.inputs, True
        return short.take(hidden)

    def behind_layer(self, output: Any) -> Any:
        """Put what passed by a layer back among what came out of it."""
        if self.whole is None:
            return output
        (short, hidden, now), self.whole = self.whole, None
        self.slots, self.positions, self.inputs, self.compacted = now
        if isinstance(output, tuple):
            return short.put_back(output[0], hidden), *output[1:]
        return short.put_back(output, hidden)

    def _mask(self, layer: int, hidden: Tensor) -> Any:
        return self.inputs.mask(self.rows[layer], self.past_length[layer], self.batch, self.slots.width, hidden)

    def _rotation(self, layer: int, hidden: Tensor) -> Rotation:
        return self.inputs.rotation(self.positions, self.past_shift[layer], self.past_shift[0], hidden)

    def _run(self, stage: ChainStage, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if self.layout is None or not max(self.candidates):
            return hidden
        if self.visual is None or self.visual[0] is not self.slots:
            self.visual = self.slots, visual_slots(self.slots, self.layout, self.candidates)
        visual = self.visual[1]
        at, entering = layer, hidden
        if stage.stage.trial is not None:
            if not worth_trying(stage.stage.budget, self.candidates):
                return hidden
            at, entering = stage.stage.trial, try_out(self, stage, stage.stage.trial, hidden, kwargs, visual.visual)
        states = gather_rows(entering, visual.at.to(hidden.device)) if stage.sees_hidden or stage.stage.mixes else None
        with torch.no_grad():
            decision = stage.decide(show(self, stage, at, entering, visual, states))
        if decision is None:
            return hidden
        if not isinstance(decision, Keep):
            raise TypeError(f"{stage.method}: a stage at a decoder layer must return Keep, got {decision!r}.")
        if decision.mix is not None:
            if not stage.stage.mixes or states is None:
                raise TypeError(f"{stage.method}: a stage that returns features must say so by mixes=True.")
            hidden = visual.replace(hidden, decision.mix(states))
        keep = visual.staying(decision.mask, self.newline, self.layout, self.slots)
        if stage.stage.hides:
            hide(self, stage, layer, visual.visual, keep)
            return hidden
        self.events.append(visual.left(stage, layer, keep, self.slots.index, decision.owner))
        left = self._compact(keep, layer, stage.positions, [hidden])
        return hidden if left is None else left[0]

    # Signals.

    def capture(self, layer: int, signal: str, hidden: Tensor, rotation: Rotation) -> None:
        """Remember what the next layer's stage will ask of this layer's attention."""
        if self.picture is None or self.layout is None:
            return
        rotation = on_all_rows(rotation, self.batch)
        without_cache = self.cache is None
        self.signals.capture(layer, signal, hidden.detach(), rotation, self.picture, self.slots, without_cache)

    def observe(self, method: str, observation: Observation, layer: int, given: Tensor, output: Tensor) -> None:
        """Note what a stage wants to know about a part of a layer."""
        if self.layout is not None:
            self.observed.note(method, observation, layer, given, output, self.slots)

    # Afterwards.

    def leave(self, output: Any) -> Any:
        """Give the caller its own cache back."""
        self.eviction = None  # it leads back here, and so would keep the cache
        cache = getattr(output, "past_key_values", None)
        if isinstance(cache, PhysicalCache):
            output["past_key_values"] = cache.logical
        return output


def inputs_of(arguments: dict[str, Any]) -> Tensor:
    """What the language model is given: (rows, slots, width) embeddings, or (rows, slots) token ids."""
    embeds: Tensor | None = arguments.get("inputs_embeds")
    return arguments["input_ids"] if embeds is None else embeds
