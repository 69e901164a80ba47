"""Stages at the cache: what they decide leaves the keys and values of a decoder layer, once its attention has run.

A layer's own attention, and with it the prefill, sees everything; later calls see what is left. An entry of the cache
is a slot whose key and value the layer holds. Every key-value head may keep other entries, but in one row all heads of
a layer keep equally many: so keys and values stay dense tensors, one mask serves all heads, and every attention
implementation works. Rows and layers may keep different numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtprune.engine.cache import Record, Rows, VisualCacheLayer, layer_bytes, shape_of
from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.decoder import DecoderStep
from vtprune.engine.devices import moved
from vtprune.engine.events import Marked
from vtprune.engine.packing import store
from vtprune.engine.signals import Rotation, query_rows
from vtprune.engine.slots import Slots
from vtprune.integrations.base import Integration
from vtprune.kernels import compact_index, gather_rows
from vtprune.methods.base import CacheEntries, Keep, Store


@dataclasses.dataclass(frozen=True)
class Evicted(Marked):
    """A stage that acted on a cache layer; `before` and `after` mark visual slots, those that the first head keeps.

    Attributes:
        kept: Bool (rows, kv_heads, slots), which slots of the call each head keeps.
    """

    kept: Tensor


class Shown(NamedTuple):
    """The pictures of a call, on the slots that are there.

    Attributes:
        visual: Bool (rows, slots), newlines among them.
        number: (rows, slots), number of the picture within its row; -1 on newlines, text and padding.
        arrived: (rows, pictures), number of slots of each picture, newlines excepted.
    """

    visual: Tensor
    number: Tensor
    arrived: Tensor

    @staticmethod
    def of(step: DecoderStep) -> Shown | None:
        """Look at the slots that are there now."""
        picture = step.picture
        if picture is None or step.layout is None:
            return None
        visual = picture >= 0
        candidate = visual if step.newline is None else visual & ~step.newline
        first = torch.tensor(step.layout.first, device=picture.device)[:, None]
        number = torch.where(candidate, picture - first, -1)
        arrived = number.new_zeros(len(number), step.layout.most + 1)
        arrived = arrived.scatter_add(1, number + 1, torch.ones_like(number))[:, 1:]
        return Shown(visual, number, arrived)


class Ran(NamedTuple):
    """A layer whose attention has run.

    Attributes:
        layer: Its index.
        hidden: (rows, slots, width), its normalised hidden states, and
        rotation: of all slots; None once they are no longer held, behind the last layer.
        slots: The slots that are there.
        shown: What pictures there are; None in a call without any.
    """

    layer: int
    hidden: Tensor | None
    rotation: Rotation | None
    slots: Slots
    shown: Shown | None


class Eviction:
    """What the stages at the cache do in one call of the language model."""

    def __init__(self, integration: Integration, step: DecoderStep) -> None:
        self.integration = integration
        self.step = step
        self.ran: Ran | None = None
        self.noted: dict[int, Ran] = {}  # layers at which stages act behind the last one
        self.shown: tuple[Slots, Shown | None] | None = None  # what was seen last
        self.rows: dict[tuple[Rows, tuple[int, ...]], Rows] = {}  # new histories, by the old one and what rows keep
        self.across: dict[str, dict[str, Tensor]] = {}  # what methods that act once remember from layer to layer

    def acts(self, stage: ChainStage, layer: int) -> bool:
        """Whether a stage acts in this call: where there are new pictures, or on a cache that it has seen before."""
        if self.step.cache is None:
            return False
        held: Any = self.step.cache.layers[layer]
        seen = isinstance(held, VisualCacheLayer) and held.record is not None and stage.method in held.record.memory
        return self.step.layout is not None or seen

    def attended(self, layer: int, hidden: Tensor, rotation: Rotation) -> None:
        """Remember what a layer's attention was given, until `run`."""
        cos, sin = (x.expand(len(hidden), -1, -1) for x in rotation)
        self.ran = Ran(layer, hidden.detach(), (cos, sin), *self._there())

    def note(self, layer: int) -> None:
        """Remember which slots a layer has seen, until the last one has run."""
        if self.step.layout is not None:
            self.noted[layer] = Ran(layer, None, None, *self._there())

    def _there(self) -> tuple[Slots, Shown | None]:
        """The slots that are there, and what pictures are."""
        slots = self.step.slots
        if self.shown is None or self.shown[0] is not slots:
            self.shown = slots, Shown.of(self.step)
        return self.shown

    def run(self, stage: ChainStage, ran: Ran) -> None:
        """Let a stage act on a layer that ran, and measure what that frees."""
        step, done = self.step, len(self.step.events)
        before, _ = layer_bytes(step.cached[ran.layer])
        self._run(stage, ran)
        if len(step.events) > done:
            freed = before - layer_bytes(step.cached[ran.layer])[0]
            step.events[-1] = dataclasses.replace(step.events[-1], freed=freed)

    def _run(self, stage: ChainStage, ran: Ran) -> None:
        """Show a stage the entries of a layer that ran, and carry out what it decides."""
        if stage.stage.decodes:
            self.step.link_rows()
        held: Any = self.step.cached[ran.layer]
        entries = self._entries(stage, ran, held)
        decision = None if entries is None else stage.decide(entries)
        if entries is not None and decision is not None:
            self._carry_out(stage, ran, held, entries, decision)

    def _entries(self, stage: ChainStage, ran: Ran, held: Any) -> CacheEntries | None:
        """What a stage is shown; None if it is not yet to act again."""
        step = self.step
        (rows, heads, entries), device = shape_of(held), held.device
        past = entries - ran.slots.width
        valid = step.rows[ran.layer].valid
        there = torch.ones(rows, entries, dtype=torch.bool, device=device) if valid is None else valid.to(device)
        picture = torch.full_like(there, -1, dtype=torch.long)
        if ran.shown is not None:
            picture[:, past:] = ran.shown.number.to(device)
        visual = picture[:, past:] >= 0
        new = visual if not stage.stage.text else there[:, past:]
        record = self._record(held, stage, new, visual.any(1), there[:, :past] & stage.stage.text)
        if record is None:
            new = new & visual.any(1, keepdim=True)  # prompts without pictures are left alone
            candidate = nn.functional.pad(new, (past, 0))[:, None].expand(-1, heads, -1)
            arrived = new.sum(1, keepdim=True)
            if ran.shown is not None and not stage.stage.text:
                arrived = ran.shown.arrived.to(device)
        else:
            if ran.shown is None and held.get_seq_length() - record.acted.get(stage.method, 0) < stage.stage.every:
                return None
            record.acted[stage.method] = held.get_seq_length()
            candidate, arrived = record.candidate & there[:, None], record.arrived[:, None]
        queries, index, counted = self._queries(stage, ran, held)
        return CacheEntries(
            layer=ran.layer,
            queries=queries,
            query_at=index.to(device) + past,
            query_valid=None if counted is None else counted.to(device),
            keys=held.keys.detach(),
            values=held.values.detach(),
            scale=self.integration.decoder_scale(self.integration.decoder_layers[ran.layer]),
            valid=there,
            candidate=candidate,
            picture=picture,
            arrived=arrived,
            memory={} if record is None else record.memory[stage.method],
            across=self.across_layers(stage, device),
            alive=self._alive(ran, past).to(device) if stage.stage.late else None,
            slot=self._original(ran.slots).to(device) + step.past,
            fed=step.past + step.original_length,
            grows=record is not None,
        )

    def _carry_out(self, stage: ChainStage, ran: Ran, held: Any, entries: CacheEntries, decision: object) -> None:
        """Let entries leave, or have them held in fewer bits."""
        step, device, candidate, there = self.step, held.device, entries.candidate, entries.valid
        end = step.past + (step.original_length if stage.stage.text or step.layout is None else step.layout.end)
        visual = None if ran.shown is None else ran.shown.visual.to(device)
        if isinstance(decision, Store):
            store(step, stage, ran.layer, decision, candidate, there, visual, ran.slots.index, end)
            return
        if not isinstance(decision, Keep) or decision.mix is not None:
            raise TypeError(
                f"{stage.method}: a stage at the cache must return a plain Keep, or Store, got {decision!r}."
            )
        self._renew(stage, held, decision)
        keep = (decision.mask.to(device) | ~candidate) & there[:, None]
        if visual is not None:
            kept = keep[:, :, -ran.slots.width :]
            step.events.append(Evicted(stage, ran.layer, [visual], [visual & kept[:, 0]], ran.slots.index, kept))
        self.evict(stage, ran.layer, keep, there, end)

    def _original(self, slots: Slots) -> Tensor:
        """(rows, slots now): slot of the call that each was."""
        if slots.index is not None:
            return slots.index
        return torch.arange(self.step.original_length, device=self.step.device).expand(self.step.batch, -1)

    def _alive(self, ran: Ran, past: int) -> Tensor:
        """Bool (rows, entries): what is there behind the last layer of what a layer holds, earlier entries included."""
        step, now, here = self.step, self.step.slots, self._original(ran.slots)
        if now.index is None:
            alive = torch.ones_like(here, dtype=torch.bool)
        else:
            to = now.index if now.valid is None else torch.where(now.valid, now.index, step.original_length)
            left = torch.zeros(step.batch, step.original_length + 1, dtype=torch.bool, device=step.device)
            alive = left.scatter(1, to, True).gather(1, here.to(step.device))
        return nn.functional.pad(alive, (past, 0), value=True)

    def _queries(self, stage: ChainStage, ran: Ran, held: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries that a stage asks for (rows, heads, n, head_dim), their slots (rows, n), and which of them count."""
        if ran.hidden is None or ran.rotation is None:
            none = torch.zeros(len(held.keys), 0, dtype=torch.long, device=held.keys.device)
            return held.keys[:, :, :0], none, None
        index, counted = self._asking(stage, ran, ran.hidden)
        cos, sin = (gather_rows(x, index) for x in ran.rotation)
        module = self.integration.decoder_layers[ran.layer]
        return self.integration.decoder_queries(module, gather_rows(ran.hidden, index), cos, sin), index, counted

    def _asking(self, stage: ChainStage, ran: Ran, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Slots of the queries that a stage asks for, (rows, n), and which of them count, None for all."""
        slots, device = ran.slots, hidden.device
        if ran.shown is None or "all_queries" in stage.signals:
            return torch.arange(slots.width, device=device).expand(len(hidden), -1), slots.valid
        visual = ran.shown.visual
        there = torch.ones_like(visual) if slots.valid is None else slots.valid
        last, _ = query_rows("last_query", visual.long(), slots.valid)
        ahead = visual.flip(1).long().cumsum(1).flip(1)  # visual slots from here on
        closing = (there & (ahead == 0) & visual.any(1, keepdim=True)).scatter(1, last, True)
        rows, counted = compact_index(closing)
        return rows.to(device), counted

    def _record(self, held: Any, stage: ChainStage, new: Tensor, pictures: Tensor, earlier: Tensor) -> Record | None:
        """What a stage that goes on at later calls knows of a layer's entries, those of this call included."""
        if not stage.stage.decodes:
            return None
        rows, heads, entries = shape_of(held)
        if held.record is None:
            before = new.new_zeros(rows, heads, earlier.shape[1])
            held.record = Record(before, new.new_zeros(rows, dtype=torch.long))
        record: Record = held.record
        record.memory.setdefault(stage.method, {})
        if record.candidate.shape[2] < entries:
            record.extend(new, pictures, earlier)
        return record

    def across_layers(self, stage: ChainStage, device: torch.device) -> dict[str, Tensor]:
        """What a stage remembers from layer to layer; from call to call, too, if it goes on at later ones."""
        first: Any = self.step.cached[min(stage.layers)]
        everyone = first.record.across if stage.stage.decodes else self.across
        across: dict[str, Tensor] = everyone.setdefault(stage.method, {})
        across.update(moved(across, device))
        return across

    def _renew(self, stage: ChainStage, held: Any, decision: Keep) -> None:
        """Put new keys and values in the place of a layer's."""
        for name, new in (("keys", decision.keys), ("values", decision.values)):
            if new is None:
                continue
            old = getattr(held, name)
            if not stage.stage.mixes:
                raise TypeError(f"{stage.method}: a stage that returns new {name} must say so by mixes=True.")
            if new.shape != old.shape:
                raise ValueError(
                    f"{stage.method}: new {name} must have shape {tuple(old.shape)}, got {tuple(new.shape)}."
                )
            setattr(held, name, new.to(old))

    def evict(self, stage: ChainStage, layer: int, keep: Tensor, there: Tensor, end: int) -> None:
        """Let entries of a layer leave.

        Args:
            stage: Who decided.
            layer: The layer.
            keep: Bool (rows, kv_heads, entries), what stays and is no padding.
            there: Bool (rows, entries), what is no padding.
            end: Logical length up to which entries may leave.
        """
        step = self.step
        rows, heads, entries = keep.shape
        counts = keep.sum(2)
        counted = torch.stack((counts.amax(1), counts.amin(1), there.sum(1)))
        most, least, before = counted.tolist()  # the one time that the host waits
        if most != least:
            raise ValueError(f"{stage.method}: the heads of a layer must keep equally many entries of a row.")
        if most == before:
            return
        step.link_rows()
        held: Any = step.cached[layer]
        width = max(most)
        index, valid = compact_index(keep.flatten(0, 1), width=width, padded=width != min(most))
        held.keys, held.values = (
            gather_rows(x.detach().flatten(0, 1), index).unflatten(0, (rows, heads)) for x in (held.keys, held.values)
        )
        padding = None if valid is None else valid.view(rows, heads, width)
        for record in held.records:
            record.take(index.view(rows, heads, width), padding)
        old = step.rows[layer]
        if (old, tuple(most)) not in self.rows:
            new = self.rows[old, tuple(most)] = old.split(layer)
            new.valid = None if padding is None else padding[:, 0].to(step.device)
            new.removed += entries - width
            new.removal_end = max(end, new.removal_end)
        step.rows[layer] = self.rows[old, tuple(most)]
        left = [i for i, own in enumerate(step.rows) if own is old]
        if left:
            old.leader = left[0]
        step.link_rows()
