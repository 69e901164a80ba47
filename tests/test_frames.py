"""InternVL's frames are told from pictures by their labels, in token ids."""

from __future__ import annotations

import pytest

from vtprune.integrations.internvl import _join_frames

ZERO, END, LINE, FRAME, IMAGE, COLON, SPACE, START = 20, 1, 2, 3, 4, 5, 6, 7


def label(word: int, number: int) -> list[int]:
    return [word, *(ZERO + int(digit) for digit in str(number)), COLON, SPACE, START]


def frames(first: int, last: int) -> list[list[int]]:
    """Text between the frames `first` .. `last`."""
    return [[END, LINE, *label(FRAME, n)] for n in range(first + 1, last + 1)]


@pytest.mark.parametrize(
    ("tiles", "gaps", "opening", "expected"),
    [
        ([1] * 12, frames(1, 12), [50, *label(FRAME, 1)], [12]),
        ([1] * 4, [*frames(1, 2), [END, LINE, *label(FRAME, 1)], *frames(1, 2)], label(FRAME, 1), [2, 2]),
        ([1, 1], [[END, LINE, *label(FRAME, 1)]], label(FRAME, 1), [1, 1]),
        ([1, 1, 1], [*frames(1, 2), [END, LINE, START]], label(FRAME, 1), [2, 1]),
        ([3, 1, 1], [[END, LINE, *label(FRAME, 1)], *frames(1, 2)], [50], [3, 2]),
        ([1, 1], [[END, LINE, START]], [50, START], [1, 1]),
        ([1, 1], [[END, LINE, 60, COLON, SPACE, START]], [70, COLON, SPACE, START], [1, 1]),
        ([1, 1], [[END, LINE, 60, 61, COLON, START]], [60, 62, COLON, START], [1, 1]),
        ([2, 1], [[END, LINE, *label(IMAGE, 2)]], label(IMAGE, 1), [2, 1]),
        ([1, 1, 1], [[END, LINE, *label(FRAME, 2)], [END, LINE, *label(FRAME, 4)]], label(FRAME, 1), [2, 1]),
    ],
    ids=[
        "twelve",
        "two videos",
        "two of one frame",
        "then a picture",
        "after tiles",
        "pictures",
        "words",
        "other words",
        "tiles in between",
        "a gap in the count",
    ],
)
def test_join(tiles, gaps, opening, expected):
    assert _join_frames(tiles, gaps, opening) == expected
