"""`VisualLayout`: the one place that knows which slot of the input is which token of which picture."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vtprune.engine.encoder import EncoderRun
from vtprune.integrations.base import Integration, Kind, PictureLayout


@dataclasses.dataclass(frozen=True)
class Picture:
    """An encoded picture or video, however many prompts show it.

    Args:
        layout: Its slots.
        run: The encoder run that made it.
        units: Which units of that run it consists of.
    """

    layout: PictureLayout
    run: EncoderRun
    units: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class VisualLayout:
    """Where the visual tokens of a batch stand. Rows of a beam search, or of several answers, share pictures.

    Args:
        picture: (rows, slots), number of the picture, counted over the batch; -1 on text and padding.
        token: (rows, slots), number of the slot within its picture; -1 on text and padding.
        pictures: What was encoded.
        source: Per picture of the batch, the one of `pictures` that it shows.
        first: Per row, the number of its first picture.
    """

    picture: Tensor
    token: Tensor
    pictures: list[Picture]
    source: list[int]
    first: list[int]

    @property
    def most(self) -> int:
        """Largest number of pictures in a row."""
        return max(b - a for a, b in zip(self.first, [*self.first[1:], len(self.source)], strict=True))

    @functools.cached_property
    def places(self) -> Tensor:
        """(pictures of the batch, most slots): where each slot stands in the flattened batch; 0 beyond its last one."""
        most = max(p.layout.slots for p in self.pictures)
        places = torch.zeros(len(self.source), most, dtype=torch.long, device=self.picture.device)
        visual = (self.picture >= 0).flatten().nonzero().squeeze(1)
        places[self.picture.flatten()[visual], self.token.flatten()[visual]] = visual
        return places

    @functools.cached_property
    def newlines(self) -> Tensor | None:
        """Bool (rows, slots): newline tokens; None if there are none."""
        if all(p.layout.lines is None for p in self.pictures):
            return None
        return self._on_slots([p.layout.newlines for p in self.pictures], 0).bool()

    @functools.cached_property
    def lines(self) -> Tensor:
        """(rows, slots): number of the line that a visual slot belongs to, counted over the batch; -1 elsewhere."""
        lines = [p.layout.lines for p in self.pictures]
        known = [torch.zeros(1, dtype=torch.long) if x is None else x for x in lines]
        longest = max(int(x.max()) for x in known) + 1
        line = self._on_slots([x.expand(p.layout.slots) for x, p in zip(known, self.pictures, strict=True)], 0)
        return torch.where(self.picture >= 0, line + self.picture * longest, -1)

    def _on_slots(self, values: Sequence[Tensor], fill: int) -> Tensor:
        """Values (slots,) per encoded picture as (rows, slots)."""
        table = torch.nn.utils.rnn.pad_sequence([x.long() for x in values], batch_first=True, padding_value=fill)
        table = table[self.source].to(self.picture.device)
        found = table[self.picture.clamp_min(0), self.token.clamp_min(0)]
        return torch.where(self.picture >= 0, found, fill)


def lay_out(
    integration: Integration,
    runs: Mapping[Kind, EncoderRun],
    placeholders: Mapping[Kind, Tensor],
    input_ids: Tensor | None,
) -> VisualLayout:
    """Match placeholders with what was encoded.

    Units fill the placeholders of their kind in order, row by row. Where the batch holds each row several times (beam
    search, several returned sequences), there are that many times more placeholders than encoded tokens.

    Args:
        integration: The model's family.
        runs: What was encoded, by kind.
        placeholders: Bool (rows, slots), by kind.
        input_ids: (rows, slots), if known.

    Raises:
        ValueError: Placeholders and pictures do not match.
    """
    masks = {kind: placeholders[kind].cpu() for kind in runs}
    shown = {kind: _units_per_row(kind, mask, runs[kind].units) for kind, mask in masks.items()}
    shape = next(iter(masks.values())).shape
    picture, token = torch.full(shape, -1), torch.full(shape, -1)
    pictures: dict[tuple[Kind, tuple[int, ...]], int] = {}
    found: list[Picture] = []
    source: list[int] = []
    first: list[int] = []
    for row in range(shape[0]):
        first.append(len(source))
        here: list[tuple[int, Kind, tuple[int, ...], Tensor]] = []  # first slot, kind, units, slots
        for kind, mask in masks.items():
            units = shown[kind][row]
            layouts = [runs[kind].units[u] for u in units]
            slots = mask[row].nonzero().squeeze(1)
            parts = slots.split([x.slots for x in layouts])
            on_slot = torch.full(shape[1:], -1)
            for number, part in enumerate(parts):
                on_slot[part] = number
            ids = None if input_ids is None or not units else input_ids[row]
            start = 0
            for count in integration.pictures(on_slot, layouts, ids) if units else []:
                end = start + count
                here.append((int(parts[start][0]), kind, tuple(units[start:end]), torch.cat(parts[start:end])))
                start = end
        for _, kind, units_of_one, slots in sorted(here, key=lambda x: x[0]):
            key = (kind, units_of_one)
            if key not in pictures:
                pictures[key] = len(found)
                found.append(_picture(runs[kind], units_of_one, slots))
            picture[row, slots] = len(source)
            token[row, slots] = torch.arange(len(slots))
            source.append(pictures[key])
    device = next(iter(placeholders.values())).device
    return VisualLayout(picture.to(device), token.to(device), found, source, first)


def _picture(run: EncoderRun, units: tuple[int, ...], slots: Tensor) -> Picture:
    parts = tuple(run.units[u] for u in units)
    apart = int(slots[-1] - slots[0]) + 1 > len(slots)
    # Units with text between them are frames, units in one piece are tiles.
    kind: Kind = "video" if len(parts) > 1 and apart else parts[0].kind
    return Picture(PictureLayout.join(parts, kind), run, units)


def _units_per_row(kind: Kind, placeholders: Tensor, units: Sequence[PictureLayout]) -> list[list[int]]:
    """Which units each row shows."""
    per_row = placeholders.sum(1).tolist()
    sizes = [unit.slots for unit in units]
    total = sum(sizes)
    copies, left = divmod(sum(per_row), total) if total else (0, sum(per_row))
    if left or copies == 0 or len(per_row) % copies:
        raise ValueError(
            f"the prompt has {sum(per_row)} {kind} placeholders, but the {kind}s were encoded to {total} tokens."
        )
    shown: list[list[int]] = []
    start = 0
    for row, need in enumerate(per_row):
        end, held = start, 0
        while held < need:
            held += sizes[end]
            end += 1
        if held != need:
            raise ValueError(
                f"row {row} has {need} {kind} placeholders, which is no whole number of {kind}s "
                f"(the next ones have {sizes[start:end]} tokens)."
            )
        shown.append(list(range(start, end)))
        if (row + 1) % copies == 0:  # the row's last copy: the next row begins with the next pictures
            start = end
    return shown
