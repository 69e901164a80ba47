"""Decisions at the encoder's output, made where its features enter the language model: on slots, picture by picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.engine.chain import ChainStage
from vtprune.engine.encoder import Event
from vtprune.engine.layout import Picture, VisualLayout
from vtprune.integrations.base import Grid, PictureLayout
from vtprune.kernels import compact_index
from vtprune.methods.base import Cells, Keep, Pictures, Replace


@dataclasses.dataclass
class Selected:
    """What became of the pictures of one layout.

    Args:
        numbers: Which of the encoded pictures they are.
        kept: Bool (pictures, slots), what stays.
        owner: (pictures, slots), the slot that stands for each slot; None where nothing was merged.
        levels: Features on slots, (pictures, slots, width): those of the input, then DeepStack's; None if unchanged.
    """

    numbers: list[int]
    kept: Tensor
    owner: Tensor | None
    levels: list[Tensor] | None


def select(
    stages: Sequence[ChainStage], layout: VisualLayout, levels: Sequence[Tensor]
) -> tuple[list[Selected], list[Event]]:
    """Run the stages on all encoded pictures.

    Args:
        stages: Stages at the encoder's output, in order.
        layout: Where the pictures stand.
        levels: Features of the flattened batch, (rows * slots, width) each: the input's, then DeepStack's.
    """
    alike: dict[PictureLayout, list[int]] = {}
    for number, picture in enumerate(layout.pictures):
        alike.setdefault(picture.layout, []).append(number)
    shown = {source: place for place, source in reversed(list(enumerate(layout.source)))}
    batches: list[tuple[list[int], _Batch]] = []
    for one, numbers in alike.items():
        places = layout.places[[shown[n] for n in numbers], : one.slots]
        features = [x[places.to(x.device)] for x in levels]
        batches.append((numbers, _Batch(one, [layout.pictures[n] for n in numbers], features)))
    events = []
    for stage in stages:
        before = [batch.with_newlines().sum() for _, batch in batches]
        for _, batch in batches:
            batch.act(stage)
        after = [batch.with_newlines().sum() for _, batch in batches]
        events.append(Event(stage, None, torch.stack(before).sum(), torch.stack(after).sum()))
    return [
        Selected(numbers, batch.with_newlines(), batch.owner, batch.levels if batch.replaced else None)
        for numbers, batch in batches
    ], events


class _Batch:
    """Pictures with one layout."""

    def __init__(self, layout: PictureLayout, pictures: list[Picture], levels: list[Tensor]) -> None:
        self.layout = layout
        self.pictures = pictures
        self.levels = levels
        self.device = levels[0].device
        self.candidates = (~layout.newlines).nonzero().squeeze(1)
        self.alive = (~layout.newlines).to(self.device).repeat(len(pictures), 1)
        self.owner: Tensor | None = None
        self.replaced = False
        groups = [torch.cat([p.run.groups[u] for u in p.units]) for p in pictures if p.run.groups is not None]
        if groups:
            self._one_slot_per_group(torch.stack(groups).to(self.device))
        self.encoded = self._signal([p.run.encoded for p in pictures])
        self.attention = self._signal([p.run.attention for p in pictures])

    def _signal(self, values: Sequence[list[Tensor] | None]) -> Tensor | None:
        found = [
            torch.cat([x[u] for u in p.units]) if len(p.units) > 1 else x[p.units[0]]
            for p, x in zip(self.pictures, values, strict=True)
            if x is not None
        ]
        return torch.stack(found).to(self.device) if found else None

    def _one_slot_per_group(self, groups: Tensor) -> None:
        pictures, slots = groups.shape
        pairs = groups + (int(groups.max()) + 2) * torch.arange(pictures, device=self.device)[:, None]
        numbers = pairs.unique(return_inverse=True)[1]
        on_slot = torch.arange(slots, device=self.device).expand(pictures, -1)
        first = torch.full((int(numbers.max()) + 1,), slots, device=self.device)
        first = first.scatter_reduce(0, numbers.flatten(), on_slot.flatten(), "amin")[numbers]
        self.owner = torch.where(groups < 0, on_slot, first)
        self.alive = self.alive & (self.owner == on_slot)

    def with_newlines(self) -> Tensor:
        """Bool (pictures, slots): what stays; a newline stays as long as a token of its line does."""
        if self.layout.lines is None:
            return self.alive
        lines, newlines = self.layout.lines.to(self.device), self.layout.newlines.to(self.device)
        return self.alive | (newlines & living(lines.expand_as(self.alive), self.alive))

    def act(self, stage: ChainStage) -> None:
        """Run one stage."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and stage.differentiable):
            for slots, grid, share in self._parts(stage):
                self._act_on(stage, slots.to(self.device), grid, share)

    def _parts(self, stage: ChainStage) -> list[tuple[Tensor, Grid | None, int | None]]:
        """What is decided together: slots (parts, tokens), their grid, and their share of a number of tokens."""
        whole: list[tuple[Tensor, Grid | None]]
        if stage.stage.needs_grid:
            whole = [(m.slots(), m.grid) for m in self.layout.maps]
        elif stage.stage.scope == "tile":
            whole = [piece for m in self.layout.maps for piece in m.pieces()]
        else:
            whole = [(self.candidates, self.layout.maps[0].grid if len(self.layout.maps) == 1 else None)]
        budget = stage.stage.budget
        alike: dict[tuple[Grid | None, int | None], list[Tensor]] = {}
        before = 0
        for slots, grid in whole:
            share = None
            if isinstance(budget, int) and len(whole) > 1:
                # Rounding down at the edges of the parts makes the shares add up.
                edges = (before, before + len(slots))
                first, last = (min(budget, len(self.candidates)) * edge // len(self.candidates) for edge in edges)
                share = last - first
            alike.setdefault((grid, share), []).append(slots)
            before += len(slots)
        return [(torch.stack(slots), grid, share) for (grid, share), slots in alike.items()]

    def _act_on(self, stage: ChainStage, slots: Tensor, grid: Grid | None, share: int | None) -> None:
        # Which slots, of which picture: (parts of all pictures, tokens).
        where = slots.repeat(len(self.pictures), 1)
        number = torch.arange(len(self.pictures), device=self.device).repeat_interleave(len(slots))[:, None]
        if share == 0:
            self.alive = self.alive.index_put((number, where), torch.zeros_like(where, dtype=torch.bool))
            return
        alive = self.alive[number, where]
        if bool(alive.all()):
            self._decide(stage, number, where, grid, share)
            return
        # Later stages see only what earlier ones kept; parts that keep equally many are decided together.
        counts = alive.sum(1)
        for count in counts.unique().tolist():
            if count:
                chosen = (counts == count).nonzero().squeeze(1)
                index, _ = compact_index(alive[chosen])
                self._decide(stage, number[chosen], where[chosen].gather(1, index), None, share)

    def _decide(self, stage: ChainStage, number: Tensor, where: Tensor, grid: Grid | None, share: int | None) -> None:
        def pick(x: Tensor | None) -> Tensor | None:
            if x is None or (where.shape == x.shape[:2] and len(self.candidates) == x.shape[1] and grid is not None):
                return x  # all slots of all pictures, in order
            return x[number, where]

        projected = pick(self.levels[0])
        encoded = pick(self.encoded)
        shown = projected if encoded is None or stage.stage.needs_grid else encoded
        if shown is None or projected is None:
            raise RuntimeError("a picture reached the language model without features.")
        cells = Cells(*self.layout.cells.to(self.device)[where].unbind(-1))
        pictures = Pictures(grid, shown, projected, pick(self.attention), cells, self.layout.seconds, share)
        decision = stage.decide(pictures)
        if isinstance(decision, Keep):
            self.alive = self.alive.index_put((number, where), decision.mask.to(self.device))
        elif isinstance(decision, Replace) and grid is not None:
            self._replace(stage, number, where, grid, decision)
        elif decision is not None:
            raise TypeError(f"{stage.method}: a stage at the encoder's output cannot return {type(decision).__name__}.")

    def _replace(self, stage: ChainStage, number: Tensor, where: Tensor, grid: Grid, decision: Replace) -> None:
        """Put new features on the first slot of each group; the same is done to every level."""
        owner = decision.owner.to(self.device)
        groups = decision.features.shape[1]
        tokens = torch.arange(owner.shape[1], device=self.device).expand_as(owner)
        first = torch.full((len(owner), groups), owner.shape[1], device=self.device)
        first = first.scatter_reduce(1, owner, tokens, "amin")
        for i, level in enumerate(self.levels):
            x = level[number, where]
            again = decision if i == 0 else stage.decide(Pictures(grid, x))
            if not isinstance(again, Replace):
                raise TypeError(f"{stage.method}: a stage that needs the grid must decide alike on all features.")
            self.levels[i] = level.index_put((number, where.gather(1, first)), again.features.to(level.dtype))
        if self.owner is None:
            self.owner = torch.arange(self.layout.slots, device=self.device).repeat(len(self.pictures), 1)
        self.owner = self.owner.index_put((number, where), where.gather(1, first.gather(1, owner)))
        self.alive = self.alive.index_put((number, where), first.gather(1, owner) == tokens)
        self.replaced = True
        self.encoded = None  # belongs to tokens that are no more


def living(lines: Tensor, alive: Tensor) -> Tensor:
    """For every slot whether its line (rows, slots), >= 0, has a living slot (rows, slots)."""
    rows = len(lines)
    table = torch.zeros(rows, int(lines.max()) + 1, dtype=torch.bool, device=alive.device)
    return table.scatter_reduce(1, lines, alive, "amax").gather(1, lines)
