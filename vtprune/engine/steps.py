"""Which tokens of every picture are left behind each place, from what stages noted while the model ran.

Up to the language model's door states are those of encoded pictures, whose slots stand for the tokens of the encoder;
behind it, masks over the slots of the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vtprune.engine.encoder import EncoderRun
from vtprune.engine.events import Blended, Chosen, Event, Grouped, Marked, Resized
from vtprune.engine.eviction import Evicted
from vtprune.engine.geometry import geometry
from vtprune.engine.hiding import Hidden
from vtprune.engine.layout import Picture, VisualLayout
from vtprune.engine.selection import Selected, one_slot_per_group, with_newlines
from vtprune.methods._grids import cell_owner
from vtprune.methods.base import Place
from vtprune.report import PlaceReport, StepReport, runs_of, where_of

CPU = torch.device("cpu")
Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """A picture at some place.

    Attributes:
        kept: Bool (tokens,), which ones are left.
        owner: The one that stands for each; None while all do for themselves.
    """

    kept: Array
    owner: tuple[int, ...] | None = None

    @staticmethod
    def of(kept: Tensor, owner: Tensor | None) -> _Tokens:
        """From (tokens,) both."""
        return _Tokens(kept.cpu().numpy(), None if owner is None else tuple(owner.tolist()))


class Steps:
    """Goes through what stages did, in the order of the report's places.

    Args:
        runs: What was encoded.
        layout: Where the pictures stand.
        selected: What became of them before the language model.
        events: What stages did.
        places: What the report says of each.
    """

    def __init__(
        self,
        runs: Sequence[EncoderRun],
        layout: VisualLayout,
        selected: Sequence[Selected],
        events: Sequence[Event],
        places: Sequence[PlaceReport],
    ) -> None:
        self.layout = layout
        self.selected = selected
        self.events = list(events)
        self.places = places
        self.run_of = {id(event): run for run in runs for event in run.events}
        self.encoded = [_Tokens(np.ones(picture.layout.slots, dtype=bool)) for picture in layout.pictures]
        number = layout.numbers[0].ravel()
        self.on_slots = [np.flatnonzero(number == i) for i in range(len(layout.source))]  # tokens are in order
        entered = [_entered(selected, i, picture) for i, picture in enumerate(layout.pictures)]
        self.owners = {0: [entered[source].owner for source in layout.source]}  # by the number of later merges
        self.door = np.zeros(layout.numbers[0].shape, dtype=bool)
        for at, source in zip(self.on_slots, layout.source, strict=True):
            self.door.ravel()[at] = entered[source].kept

    def of_pictures(self) -> list[tuple[StepReport, ...]]:
        """The steps of every picture of the batch."""
        found: list[list[StepReport]] = [[] for _ in self.layout.source]
        start = 0
        for run in runs_of(self.places):
            events = self.events[start : start + len(run)]
            start += len(run)
            place = where_of(run), run[0].method
            if isinstance(events[-1], Resized | Grouped | Chosen):
                steps = self._before_door(place, events[-1])
            else:
                steps = self._behind_door(place, events)
            for steps_of_one, step in zip(found, steps, strict=True):
                steps_of_one.append(step)
        return [tuple(steps) for steps in found]

    # Up to the door.

    def _before_door(self, place: tuple[str, str], event: Event) -> list[StepReport]:
        before = self.encoded
        self.encoded = self._after(event)
        steps = [_step(place, a.kept.sum(), b.kept, b.owner) for a, b in zip(before, self.encoded, strict=True)]
        return [steps[source] for source in self.layout.source]

    def _after(self, event: Event) -> list[_Tokens]:
        """The encoded pictures behind a stage; those that another run encoded stay as they were."""
        if isinstance(event, Chosen) and not isinstance(event.after, int):
            found = list(self.encoded)
            for one, mask, owner in zip(self.selected, event.after, event.owners, strict=True):
                for i, number in enumerate(one.numbers):
                    found[number] = _Tokens.of(mask[i], None if owner is None else owner[i])
            return found
        run = self.run_of[id(event)]
        groups = _groups(run, event)
        return [
            _grouped(picture, groups) if picture.run is run and groups is not None else tokens
            for picture, tokens in zip(self.layout.pictures, self.encoded, strict=True)
        ]

    # Behind it.

    def _behind_door(self, place: tuple[str, str], events: Sequence[Event]) -> list[StepReport]:
        first, last = events[0], events[-1]
        if isinstance(first, Marked) and isinstance(last, Marked):
            before, after = self._on_batch(first, first.before), self._on_batch(last, last.after)
        else:  # inside a layer, where none leaves
            before = after = self._there(last.layer or 0)
        held = None
        if isinstance(last, Evicted):
            held = np.mean([self._held(event) for event in events if isinstance(event, Evicted)], axis=0)
            after = self._on_batch(last, last.before)
        elif isinstance(last, Hidden):
            held = (after & ~self._on_batch(last, [last.hidden])).astype(float)
        steps = []
        for at, owner in zip(self.on_slots, self.owners_at(last.layer or 0), strict=True):
            shares = None if held is None else held.ravel()[at]
            step = _step(place, before.ravel()[at].sum(), after.ravel()[at], owner, shares)
            if isinstance(last, Evicted):
                step = dataclasses.replace(step, tokens_after=round(sum(step.held or ())))
            steps.append(step)
        return steps

    def owners_at(self, layer: int) -> list[tuple[int, ...] | None]:
        """For every picture of the batch, who stands for each of its tokens in a decoder layer."""
        blended = [x for x in self.events if isinstance(x, Blended) and (x.layer or 0) <= layer]
        for count in range(len(self.owners), len(blended) + 1):
            merged = _merged(blended[count - 1], self.layout)
            before = zip(self.on_slots, self.owners[count - 1], strict=True)
            self.owners[count] = [_through(owner, merged.ravel()[at]) for at, owner in before]
        return self.owners[len(blended)]

    def _there(self, layer: int) -> Array:
        """Bool (rows, slots of the call), the visual slots that a decoder layer runs on."""
        there = self.door
        between = [x for x in self.events if isinstance(x, Marked) and x.stage.stage.place is not Place.CACHE]
        for event in between:
            at = event.layer or 0
            if at == layer or (at < layer and not event.stage.stage.skips):  # what passes by is there again behind it
                there = there & self._on_batch(event, event.after)
        return there

    def _on_batch(self, event: Marked, mask: int | Sequence[Tensor]) -> Array:
        """A mask (rows, slots that were there) on the slots of the call."""
        if isinstance(mask, int):
            raise RuntimeError("a stage of the language model marks the slots that it left.")
        return _spread(mask[0].cpu().numpy(), event.slot, self.door.shape)

    def _held(self, event: Evicted) -> Array:
        """(rows, slots of the call), the share of heads whose cache still holds each visual slot."""
        share = event.kept.float().mean(1).cpu().numpy()
        return _spread(share, event.slot, self.door.shape) * self._on_batch(event, event.before)


def _step(
    place: tuple[str, str], before: int, kept: Array, owner: tuple[int, ...] | None, held: Array | None = None
) -> StepReport:
    return StepReport(
        where=place[0],
        method=place[1],
        tokens_before=int(before),
        tokens_after=int(kept.sum()),
        kept=tuple(kept.nonzero()[0].tolist()),
        owner=owner,
        held=None if held is None else tuple(held.tolist()),
    )


def _entered(selected: Sequence[Selected], number: int, picture: Picture) -> _Tokens:
    """What of an encoded picture enters the language model."""
    for one in selected:
        if number in one.numbers:
            i = one.numbers.index(number)
            return _Tokens.of(one.kept[i], None if one.owner is None else one.owner[i])
    return _Tokens(np.ones(picture.layout.slots, dtype=bool))


def _groups(run: EncoderRun, event: Event) -> list[Tensor] | None:
    """The group of every slot of a run's units behind one of its stages; None if all are alone."""
    if isinstance(event, Resized):
        given = [unit.maps[0].grid for unit in run.units]
        return [cell_owner(a[0], a[1:], b[1:])[0] for a, b in zip(given, event.grids, strict=True)]
    if not isinstance(event, Grouped) or event.owner is None:
        return None
    return run.integration.owners_on_slots(run.call, event.owner.cpu())


def _grouped(picture: Picture, groups: Sequence[Tensor]) -> _Tokens:
    own = torch.cat([groups[unit] for unit in picture.units]).cpu()
    owner, standing = one_slot_per_group(own[None])
    known = geometry(picture.layout, CPU)
    kept = with_newlines(known, known.candidates & standing)
    return _Tokens.of(kept[0], owner[0])


def _merged(event: Blended, layout: VisualLayout) -> Array:
    """(rows, slots of the call), the number of the token that stands for each visual slot, of those of its picture."""
    picture, token = layout.numbers
    valid = np.ones(event.at.shape, dtype=bool) if event.valid is None else event.valid.cpu().numpy()
    rows, _ = valid.nonzero()
    slots = event.at.cpu() if event.slot is None else event.slot.cpu().gather(1, event.at.cpu())
    slot, by = (x.numpy()[valid] for x in (slots, slots.gather(1, event.owner.cpu())))
    near = picture[rows, slot] == picture[rows, by]  # what became part of another picture is gone from this one
    found = token.copy()
    found[rows[near], slot[near]] = token[rows[near], by[near]]
    return found


def _through(owner: tuple[int, ...] | None, merged: Array) -> tuple[int, ...] | None:
    """Who stands for each token of a picture, once those that did are stood for by others, (tokens,)."""
    if (merged == np.arange(len(merged))).all():
        return owner
    return tuple((merged if owner is None else merged[list(owner)]).tolist())


def _spread(values: Array, slot: Tensor | None, shape: tuple[int, ...]) -> Array:
    """Values (rows, slots that were there) on the slots of the call, 0 on the others."""
    if slot is None:
        return values
    found = np.zeros(shape, dtype=values.dtype)
    rows, columns = values.nonzero()  # none of them is padding, which may point at a slot that is there
    found[rows, slot.cpu().numpy()[rows, columns]] = values[rows, columns]
    return found
