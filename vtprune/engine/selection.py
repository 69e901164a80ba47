"""Decisions at the encoder's output, made where its features enter the language model: on slots, picture by picture."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.events import Chosen, Event
from vtprune.engine.geometry import Geometry, Part, geometry
from vtprune.engine.layout import Picture, VisualLayout
from vtprune.engine.merging import DROPPED
from vtprune.integrations.base import Grid, PictureLayout
from vtprune.kernels import compact_index, gather_rows
from vtprune.methods.base import Cells, EncoderSignal, Keep, Pictures, Replace, Tiles


@dataclasses.dataclass
class Selected:
    """What became of the pictures of one layout.

    Args:
        numbers: Which of the encoded pictures they are.
        kept: Bool (pictures, slots), what stays.
        owner: (pictures, slots), the slot that stands for each slot; None where nothing was merged.
        runs: Bool (pictures, slots), False on what passes by decoder layers; None where nothing does.
        levels: Features on slots, (pictures, slots, width): those of the input, then DeepStack's; None if unchanged.
        marks: By method, (pictures, slots), what it marked for its stages in the decoder, bool or numbers.
    """

    numbers: list[int]
    kept: Tensor
    owner: Tensor | None
    levels: list[Tensor] | None
    runs: Tensor | None = None
    marks: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Text:
    """The text of every row after its first visual slot.

    Attributes:
        embeds: (rows, n, width), padded on the left.
        valid: Bool (rows, n), False on padding.
    """

    def __init__(self, embeds: Tensor, index: Tensor, valid: Tensor | None) -> None:
        self.embeds = gather_rows(embeds.detach(), index)
        self.valid = torch.ones_like(index, dtype=torch.bool) if valid is None else valid


def select(
    stages: Sequence[ChainStage], layout: VisualLayout, levels: Sequence[Tensor], text: Text | None = None
) -> tuple[list[Selected], list[Event]]:
    """Run the stages on all encoded pictures.

    Args:
        stages: Stages at the encoder's output, in order.
        layout: Where the pictures stand.
        levels: Features of the flattened batch, (rows * slots, width) each: the input's, then DeepStack's.
        text: Present if a stage asks for it.
    """
    alike: dict[PictureLayout, list[int]] = {}
    for number, picture in enumerate(layout.pictures):
        alike.setdefault(picture.layout, []).append(number)
    shown = {source: place for place, source in reversed(list(enumerate(layout.source)))}
    batches: list[tuple[list[int], _Batch]] = []
    for one, numbers in alike.items():
        places = layout.places_of([shown[n] for n in numbers], one.slots)
        features = [x[places.to(x.device)] for x in levels]
        batch = _Batch(one, [layout.pictures[n] for n in numbers], features)
        if text is not None:
            rows = [bisect.bisect_right(layout.first, shown[n]) - 1 for n in numbers]
            batch.text, batch.text_valid = text.embeds[rows], text.valid[rows]
        batches.append((numbers, batch))
    events: list[Event] = []
    standing = [batch.standing() for _, batch in batches]
    for stage in stages:
        before = standing
        for _, batch in batches:
            batch.act(stage)
        standing = [batch.standing() for _, batch in batches]
        if not stage.stage.skips:
            events.append(Chosen(stage, None, before, standing, [batch.owner for _, batch in batches]))
    return [
        Selected(numbers, kept, batch.owner, batch.levels if batch.replaced else None, batch.running(), batch.marks)
        for (numbers, batch), kept in zip(batches, standing, strict=True)
    ], events


class _Batch:
    """Pictures with one layout.

    Attributes:
        alive: Bool (pictures, slots), candidates that are left.
        complete: Whether no candidate has left yet.
    """

    def __init__(self, layout: PictureLayout, pictures: list[Picture], levels: list[Tensor]) -> None:
        self.layout = layout
        self.pictures = pictures
        self.levels = levels
        self.device = levels[0].device
        self.geometry = geometry(layout, self.device)
        self.alive = self.geometry.candidates.expand(len(pictures), -1)
        self.runs: Tensor | None = None  # bool (pictures, slots), candidates that pass by no decoder layer
        self.complete = True
        self.marks: dict[str, Tensor] = {}
        self.owner: Tensor | None = None
        self.replaced = False
        self.text: Tensor | None = None  # (pictures, n, width)
        self.text_valid: Tensor | None = None
        groups = [torch.cat([p.run.groups[u] for u in p.units]) for p in pictures if p.run.groups is not None]
        if groups:
            self.owner, standing = one_slot_per_group(torch.stack(groups).to(self.device))
            self.alive, self.complete = self.alive & standing, False
        self.scored = EncoderSignal("attention", pictures[0].run.integration.scored_block)
        self.encoded = self._signal([p.run.encoded for p in pictures])
        self.pixel_steps = self._signal([p.run.pixel_steps for p in pictures])
        asked = {signal for p in pictures for signal in p.run.signals}
        self.signals = {signal: self._signal([p.run.signals.get(signal) for p in pictures]) for signal in asked}

    def _signal(self, values: Sequence[list[Tensor] | None]) -> Tensor | None:
        found = [
            torch.cat([x[u] for u in p.units]) if len(p.units) > 1 else x[p.units[0]]
            for p, x in zip(self.pictures, values, strict=True)
            if x is not None
        ]
        return torch.stack(found).to(self.device) if found else None

    def standing(self) -> Tensor:
        """Bool (pictures, slots): what stays; a newline stays as long as a token of its line does."""
        return with_newlines(self.geometry, self.alive)

    def running(self) -> Tensor | None:
        """Bool (pictures, slots): what passes by no decoder layer; newlines go with their lines."""
        return None if self.runs is None else with_newlines(self.geometry, self.runs)

    def act(self, stage: ChainStage) -> None:
        """Run one stage."""
        budget = stage.stage.budget
        parts = self.geometry.parts(
            stage.stage.needs_grid, stage.stage.scope == "tile", budget if isinstance(budget, int) else None
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and stage.differentiable):
            complete = self.complete
            for part in parts:
                self._act_on(stage, part, complete)

    def _act_on(self, stage: ChainStage, part: Part, complete: bool) -> None:
        # Which slots, of which picture: (parts of all pictures, tokens).
        count, pieces = len(self.pictures), len(part.slots)
        where = part.slots if count == 1 else part.slots.repeat(count, 1)
        number = torch.arange(count, device=self.device).repeat_interleave(pieces)[:, None]
        if part.share == 0:
            self._set_alive(number, where, torch.zeros_like(where, dtype=torch.bool))
            return
        if complete:
            tiles = self.geometry.tiles if stage.stage.scope == "picture" else None
            self._decide(stage, number, where, part.grid, part.share, part.everything, tiles)
            return
        alive = self.alive[number, where]
        counts = alive.sum(1)
        # Later stages see only what earlier ones kept; parts that keep equally many are decided together.
        for left in sorted(set(counts.tolist()) - {0}):
            if left == where.shape[1] and bool((counts == left).all()):
                self._decide(stage, number, where, part.grid, part.share, part.everything)
                continue
            chosen = (counts == left).nonzero().squeeze(1)
            index, _ = compact_index(alive[chosen])
            self._decide(stage, number[chosen], where[chosen].gather(1, index), None, part.share)

    def _decide(
        self,
        stage: ChainStage,
        number: Tensor,
        where: Tensor,
        grid: Grid | None,
        share: int | None,
        everything: bool = False,
        tiles: Tiles | None = None,
    ) -> None:
        def pick(x: Tensor | None) -> Tensor | None:
            return x if x is None or everything else x[number, where]

        projected = pick(self.levels[0])
        encoded = pick(self.encoded)
        shown = projected if encoded is None or stage.stage.needs_grid else encoded
        if shown is None or projected is None:
            raise RuntimeError("a picture reached the language model without features.")
        cells = Cells(*(x.expand_as(where) if everything else x[where] for x in self.geometry.cells))
        signals = {signal: x for signal, values in self.signals.items() if (x := pick(values)) is not None}
        pictures = Pictures(
            grid,
            shown,
            projected,
            signals.get(self.scored),
            cells,
            self.layout.seconds,
            share,
            signals,
            None if self.text is None else self.text[number[:, 0]],
            None if self.text_valid is None else self.text_valid[number[:, 0]],
            tiles,
            pick(self.pixel_steps),
        )
        decision = stage.decide(pictures)
        if isinstance(decision, Keep):
            mask = decision.mask.to(self.device)
            self._mix(stage, number, where, decision)
            if decision.marked is not None:
                marked = decision.marked.to(self.device)
                none = marked.new_zeros(self.alive.shape)
                marks = self.marks.get(stage.method, none)
                self.marks[stage.method] = marks.index_put((number, where), marked)
            if stage.stage.skips:
                self.runs = (self.alive if self.runs is None else self.runs).index_put((number, where), mask)
            elif everything:
                self.alive, self.complete = mask, False
            else:
                self._set_alive(number, where, mask)
        elif isinstance(decision, Replace) and grid is not None:
            self._replace(stage, number, where, grid, decision)
        elif decision is not None:
            raise TypeError(f"{stage.method}: a stage at the encoder's output cannot return {type(decision).__name__}.")

    def _mix(self, stage: ChainStage, number: Tensor, where: Tensor, decision: Keep) -> None:
        """Give the tokens that stay their new features, on every level, and note who stands for whom."""
        if stage.stage.shares and decision.owner is None:
            raise TypeError(f"{stage.method}: a stage with shares=True must name an owner of every token.")
        if decision.mix is None and not stage.stage.shares:
            return
        if decision.owner is not None:
            owner = torch.arange(self.layout.slots, device=self.device).repeat(len(self.pictures), 1)
            owner = owner.index_put((number, where), where.gather(1, decision.owner.to(self.device)))
            # What stood for others before may now be stood for itself.
            self.owner = owner if self.owner is None else owner.gather(1, self.owner)
        if decision.mix is None:
            return
        if not stage.stage.mixes:
            raise TypeError(f"{stage.method}: a stage that returns features must say so by mixes=True.")
        for i, level in enumerate(self.levels):
            new = decision.mix(level[number, where]).to(level.dtype)
            self.levels[i] = level.index_put((number, where), new)
        self.replaced = True
        self.encoded = None  # belongs to tokens that are no more

    def _set_alive(self, number: Tensor, where: Tensor, values: Tensor) -> None:
        self.alive = self.alive.index_put((number, where), values)
        self.complete = False

    def _replace(self, stage: ChainStage, number: Tensor, where: Tensor, grid: Grid, decision: Replace) -> None:
        """Put new features on the first slot of each group; the same is done to every level."""
        owner = decision.owner.to(self.device)
        groups = decision.features.shape[1]
        tokens = torch.arange(owner.shape[1], device=self.device).expand_as(owner)
        first = torch.full((len(owner), groups), owner.shape[1], device=self.device)
        first = first.scatter_reduce(1, owner, tokens, "amin")
        for i, level in enumerate(self.levels):
            new = decision.features if i == 0 else self._again(stage, grid, decision, level[number, where])
            # On every slot of a group, as padding has none; only the first of them is read.
            self.levels[i] = level.index_put((number, where), gather_rows(new, owner).to(level.dtype))
        if self.owner is None:
            self.owner = torch.arange(self.layout.slots, device=self.device).repeat(len(self.pictures), 1)
        self.owner = self.owner.index_put((number, where), where.gather(1, first.gather(1, owner)))
        self._set_alive(number, where, first.gather(1, owner) == tokens)
        self.replaced = True
        self.encoded = None  # belongs to tokens that are no more

    def _again(self, stage: ChainStage, grid: Grid, decision: Replace, x: Tensor) -> Tensor:
        """What a decision makes of another level of features."""
        if decision.again is not None:
            return decision.again(x)
        again = stage.decide(Pictures(grid, x))
        if not isinstance(again, Replace):
            raise TypeError(f"{stage.method}: a stage that needs the grid must decide alike on all features.")
        return again.features


def one_slot_per_group(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The first slot of a group stands for all of them.

    Args:
        groups: (pictures, slots), the group of each slot; below 0 for those that belong to none, and are alone.

    Returns:
        (pictures, slots), the slot that stands for each; and bool, which ones stand, without those that were dropped.
    """
    pictures, slots = groups.shape
    pairs = groups + (int(groups.max()) + 2) * torch.arange(pictures, device=groups.device)[:, None]
    numbers = pairs.unique(return_inverse=True)[1]
    on_slot = torch.arange(slots, device=groups.device).expand(pictures, -1)
    first = torch.full((int(numbers.max()) + 1,), slots, device=groups.device)
    first = first.scatter_reduce(0, numbers.flatten(), on_slot.flatten(), "amin")[numbers]
    owner = torch.where(groups < 0, on_slot, first)
    return owner, (owner == on_slot) & (groups != DROPPED)


def with_newlines(geometry: Geometry, chosen: Tensor) -> Tensor:
    """Some tokens of pictures with one geometry, bool (pictures, slots), and the newlines of their lines."""
    if geometry.lines is None:
        return chosen
    lines = geometry.lines.expand(len(chosen), -1)
    return chosen | (geometry.newlines & living(lines, chosen.shape[1], chosen))


def living(lines: Tensor, count: int, alive: Tensor) -> Tensor:
    """For every slot whether its line (rows, slots), in [0, count), has a living slot (rows, slots)."""
    table = torch.zeros(len(lines), count, dtype=torch.bool, device=alive.device)
    return table.scatter_reduce(1, lines, alive, "amax").gather(1, lines)
