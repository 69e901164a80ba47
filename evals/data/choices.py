"""Options of a question and the letters that stand for them."""

from __future__ import annotations

import string

from vtprune.evals.data.sample import Sample

LETTERS = string.ascii_uppercase


def lettered(sample: Sample) -> dict[str, str]:
    """The options by their letters, "A" for the first.

    Raises:
        ValueError: There are none, or more than letters.
    """
    if not sample.choices:
        raise ValueError(f"question {sample.id!r} has no choices.")
    if len(sample.choices) > len(LETTERS):
        raise ValueError(f"question {sample.id!r} has {len(sample.choices)} choices, more than there are letters (26).")
    return dict(zip(LETTERS, sample.choices, strict=False))


def right_letters(sample: Sample) -> tuple[str, ...]:
    """Letters of the right options, in their order; none where they are unknown.

    Raises:
        ValueError: See `lettered`.
    """
    return tuple(letter for letter, choice in lettered(sample).items() if choice in sample.answers)
