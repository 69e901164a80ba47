"""`VisualLayout`: the one place that knows which slot of the input is which token of which picture."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
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

    Worked out on the host, where the numbers of tokens have to be known anyway; tensors are on the device.

    Args:
        numbers: (2, rows, slots): `picture` and `token` on the host.
        pictures: What was encoded.
        source: Per picture of the batch, the one of `pictures` that it shows.
        first: Per row, the number of its first picture.
        device: Of the tensors.
    """

    numbers: np.ndarray
    pictures: list[Picture]
    source: list[int]
    first: list[int]
    device: torch.device

    @property
    def most(self) -> int:
        """Largest number of pictures in a row."""
        return max(b - a for a, b in zip(self.first, [*self.first[1:], len(self.source)], strict=True))

    @property
    def tokens(self) -> list[int]:
        """Per row, number of visual slots that are no newlines."""
        sizes = [sum(m.tokens for m in self.pictures[source].layout.maps) for source in self.source]
        return [sum(sizes[a:b]) for a, b in itertools.pairwise([*self.first, len(self.source)])]

    @functools.cached_property
    def visual(self) -> np.ndarray:
        """Bool (rows, slots), on the host: slots of pictures, newlines included."""
        return self.numbers[0] >= 0

    @functools.cached_property
    def end(self) -> int:
        """Behind the last visual slot of any row."""
        return int(np.flatnonzero(self.visual.any(axis=0))[-1]) + 1

    @functools.cached_property
    def _on_device(self) -> Tensor:
        return torch.from_numpy(self.numbers).to(self.device)

    @functools.cached_property
    def picture(self) -> Tensor:
        """(rows, slots), number of the picture, counted over the batch; -1 on text and padding."""
        return self._on_device[0]

    @functools.cached_property
    def token(self) -> Tensor:
        """(rows, slots), number of the slot within its picture; -1 on text and padding."""
        return self._on_device[1]

    @functools.cached_property
    def places(self) -> Tensor:
        """(pictures of the batch, most slots): where each slot stands in the flattened batch; 0 beyond its last one."""
        most = max(p.layout.slots for p in self.pictures)
        places = np.zeros((len(self.source), most), dtype=np.int64)
        (visual,) = self.visual.ravel().nonzero()
        places[self.numbers[0].ravel()[visual], self.numbers[1].ravel()[visual]] = visual
        return torch.from_numpy(places).to(self.device)

    def places_of(self, shown: Sequence[int], slots: int) -> Tensor:
        """(len(shown), slots): `places` of some pictures of the batch that have so many slots."""
        everything = len(shown) == len(self.source) and list(shown) == list(range(len(shown)))
        return (self.places if everything else self.places[shown])[:, :slots]

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
        line = self._on_slots([x.expand(p.layout.slots) for x, p in zip(known, self.pictures, strict=True)], 0)
        return torch.where(self.picture >= 0, line + self.picture * self.longest, -1)

    @property
    def longest(self) -> int:
        """Largest number of lines that a picture may have."""
        return max(p.layout.slots for p in self.pictures)

    def _on_slots(self, values: Sequence[Tensor], fill: int) -> Tensor:
        """Values (slots,) per encoded picture as (rows, slots)."""
        table = torch.nn.utils.rnn.pad_sequence([x.long() for x in values], batch_first=True, padding_value=fill)
        table = table[self.source].to(self.device)
        found = table[self.picture.clamp_min(0), self.token.clamp_min(0)]
        return torch.where(self.picture >= 0, found, fill)


def lay_out(
    integration: Integration,
    runs: Mapping[Kind, EncoderRun],
    masks: Mapping[Kind, np.ndarray],
    input_ids: Tensor | None,
    device: torch.device,
) -> VisualLayout:
    """Match placeholders with what was encoded.

    Units fill the placeholders of their kind in order, row by row. Where the batch holds each row several times (beam
    search, several returned sequences), there are that many times more placeholders than encoded tokens.

    Args:
        integration: The model's family.
        runs: What was encoded, by kind.
        masks: Bool (rows, slots), by kind: the placeholders.
        input_ids: (rows, slots), on the host, if known.
        device: Where the layout is used.

    Raises:
        ValueError: Placeholders and pictures do not match.
    """
    shown = {kind: _units_per_row(kind, mask, runs[kind].units) for kind, mask in masks.items()}
    shape = next(iter(masks.values())).shape
    numbers = np.full((2, *shape), -1, dtype=np.int64)
    pictures: dict[tuple[Kind, tuple[int, ...]], int] = {}
    found: list[Picture] = []
    source: list[int] = []
    first: list[int] = []
    for row in range(shape[0]):
        first.append(len(source))
        here: list[tuple[int, Kind, tuple[int, ...], np.ndarray]] = []  # first slot, kind, units, slots
        for kind, mask in masks.items():
            units = shown[kind][row]
            if not units:
                continue
            layouts = [runs[kind].units[u] for u in units]
            (slots,) = mask[row].nonzero()
            parts = np.split(slots, np.cumsum([x.slots for x in layouts])[:-1])
            on_slot = np.full(shape[1:], -1)
            on_slot[slots] = np.repeat(np.arange(len(units)), [x.slots for x in layouts])
            start = 0
            for count in integration.pictures(on_slot, layouts, None if input_ids is None else input_ids[row]):
                end = start + count
                here.append((int(parts[start][0]), kind, tuple(units[start:end]), np.concatenate(parts[start:end])))
                start = end
        for _, kind, units_of_one, slots in sorted(here, key=lambda x: x[0]):
            key = (kind, units_of_one)
            if key not in pictures:
                pictures[key] = len(found)
                found.append(_picture(runs[kind], units_of_one, slots))
            numbers[:, row, slots] = np.full(len(slots), len(source)), np.arange(len(slots))
            source.append(pictures[key])
    return VisualLayout(numbers, found, source, first, device)


def _picture(run: EncoderRun, units: tuple[int, ...], slots: np.ndarray) -> Picture:
    parts = tuple(run.units[u] for u in units)
    apart = int(slots[-1] - slots[0]) + 1 > len(slots)
    # Units with text between them are frames, units in one piece are tiles.
    kind: Kind = "video" if len(parts) > 1 and apart else parts[0].kind
    return Picture(PictureLayout.join(parts, kind), run, units)


def _units_per_row(kind: Kind, placeholders: np.ndarray, units: Sequence[PictureLayout]) -> list[list[int]]:
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
