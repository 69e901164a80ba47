"""What lies under each patch of a picture or of a clip's frames, on any grid: what a model's heads are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from vtprune.evals.clips import DIRECTIONS, Clip
from vtprune.evals.scenes import CHARACTERS, COLOURS, QUADRANTS, SHAPES, SIZE, SceneObject, owner_map

COLOUR, SHAPE, CHARACTER, CENTRE, QUADRANT, SAME_SHAPE, SAME_COLOUR, OBJECTS, DIRECTION, RANK = range(10)
"""The columns of `PatchTargets.words`."""

SIZES = (
    len(COLOURS) + 1,
    len(SHAPES) + 1,
    len(CHARACTERS) + 2,
    2,
    len(QUADRANTS) + 1,
    9,
    9,
    10,
    len(DIRECTIONS) + 1,
    4,
)
"""How many values each column can take."""

UNKNOWN = -100
"""Value of a column that cannot be known or does not apply."""

_PATCH = 14
_LEAST = 0.12
_MOST_ALIKE = 8
_FRAMES_TO_SEE_MOTION = 2


class PatchTargets(NamedTuple):
    """The truth about patches.

    Attributes:
        words: (..., 10) int64. Colour, shape and character of the object under the patch (0 background; a character of
            1 is none), whether the patch holds its centre, its quadrant (0 if it lies across), the number of objects of
            its shape and of its colour (itself included), the number of all objects, and in clips its direction (0
            none) and how many objects had appeared before it.
        place: (..., 4) float32. Centre of the object from -1 to 1 (across, down), and how far it is from the patch, in
            units of four patches.
    """

    words: np.ndarray
    place: np.ndarray


def object_targets(objects: Sequence[SceneObject], rows: int, columns: int) -> tuple[PatchTargets, np.ndarray]:
    """The targets of a picture of some objects, and the number of each patch's object (-1 for background).

    Args:
        objects: What the picture shows.
        rows: Patches from top to bottom; the picture is stretched to fit.
        columns: Patches from left to right.
    """
    count = rows * columns
    owner = _owners(objects, rows, columns)
    words, place = np.zeros((count, len(SIZES)), dtype=np.int64), np.zeros((count, 4), dtype=np.float32)
    words[:, OBJECTS] = len(objects)
    words[:, [DIRECTION, RANK]] = UNKNOWN
    height, width = SIZE / rows, SIZE / columns
    cells = [int(obj.y // height) * columns + int(obj.x // width) for obj in objects]
    for number, cell in enumerate(cells):
        owner[cell] = number
    shapes, colours = Counter(o.shape for o in objects), Counter(o.colour for o in objects)
    patch = np.arange(count)
    for number, (obj, cell) in enumerate(zip(objects, cells, strict=True)):
        under = owner == number
        words[under, COLOUR] = 1 + list(COLOURS).index(obj.colour)
        words[under, SHAPE] = 1 + SHAPES.index(obj.shape)
        words[under, CHARACTER] = 1 if obj.character is None else 2 + CHARACTERS.index(obj.character)
        words[cell, CENTRE] = 1
        words[under, QUADRANT] = 0 if obj.quadrant is None else 1 + QUADRANTS.index(obj.quadrant)
        words[under, SAME_SHAPE] = min(_MOST_ALIKE, shapes[obj.shape])
        words[under, SAME_COLOUR] = min(_MOST_ALIKE, colours[obj.colour])
        place[under, :2] = 2 * obj.x / SIZE - 1, 2 * obj.y / SIZE - 1
        place[under, 2] = (obj.x / width - patch[under] % columns - 0.5) / 4
        place[under, 3] = (obj.y / height - patch[under] // columns - 0.5) / 4
    return PatchTargets(words, place), owner


def clip_targets(clip: Clip, together: int, grid: int = 8) -> PatchTargets:
    """The targets of a clip, (steps, grid * grid, ...).

    Args:
        clip: The clip.
        together: Frames that a model takes for one step. An object counts if one of them shows it, where the last of
            them does.
        grid: Patches per side of a frame.
    """
    ranks = {
        place: rank for rank, place in enumerate(sorted(range(len(clip.tracks)), key=lambda k: clip.tracks[k].first))
    }
    steps = []
    for first in range(0, clip.frames, together):
        frames = range(first, min(clip.frames, first + together))
        shown = _shown(clip, frames)
        targets, owner = object_targets([obj for _, obj in shown], grid, grid)
        for number, (place, _) in enumerate(shown):
            if place is None:
                continue
            track, under = clip.tracks[place], owner == number
            targets.words[under, RANK] = ranks[place]
            if track.direction is None:
                targets.words[under, DIRECTION] = 0
            elif frames[-1] - track.first >= _FRAMES_TO_SEE_MOTION:
                targets.words[under, DIRECTION] = 1 + list(DIRECTIONS).index(track.direction)
        steps.append(targets)
    return PatchTargets(*(np.stack(part) for part in zip(*steps, strict=True)))


def _shown(clip: Clip, frames: range) -> list[tuple[int | None, SceneObject]]:
    """The objects in some frames with the numbers of their tracks; None for a card."""
    needle = clip.needle if clip.needle and any(clip.needle.first <= f < clip.needle.end for f in frames) else None
    found: list[tuple[int | None, SceneObject]] = []
    for place, track in enumerate(clip.tracks):
        seen = [obj for frame in frames if (obj := track.at(frame)) is not None]
        if seen:
            printed = needle is not None and needle.track == place
            found.append((place, replace(seen[-1], character=needle.character) if needle and printed else seen[-1]))
    if needle is not None and needle.card is not None:
        found.append((None, needle.card))
    return found


def _owners(objects: Sequence[SceneObject], rows: int, columns: int) -> np.ndarray:
    """The object that covers most of each patch, if it covers enough of it; -1 for background."""
    count, kinds = rows * columns, len(objects) + 1
    if not objects:
        return np.full(count, -1)
    owners = owner_map(objects).resize((columns * _PATCH, rows * _PATCH), Image.Resampling.NEAREST)
    cells = np.asarray(owners).reshape(rows, _PATCH, columns, _PATCH).transpose(0, 2, 1, 3).reshape(count, -1)
    flat = cells.astype(np.int64) + np.arange(count)[:, None] * kinds
    covered = np.bincount(flat.ravel(), minlength=count * kinds).reshape(count, kinds)[:, 1:]
    return np.where(covered.max(1) >= _LEAST * _PATCH * _PATCH, covered.argmax(1), -1)
