"""What several benchmarks' columns have in common."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import Any

from vtprune.evals.data.benchmarks.base import Row

SHORT = "Answer the question using a single word or phrase."
"""What follows an open question; LLaVA-1.5 was trained with these words (arXiv 2310.03744, table 7)."""


def brief(question: str, request: str = SHORT) -> str:
    """A question with the request for a short answer.

    Raises:
        ValueError: There is no question.
    """
    if not question.strip():
        raise ValueError("it has no question")
    return f"{question.strip()}\n{request}"


def briefly(column: str, request: str = SHORT) -> Callable[[Row], str]:
    """The question of a column with the request for a short answer."""
    return lambda row: brief(row[column], request)


def by_letter(choices: Sequence[str], letter: str) -> str:
    """The choice of a letter.

    Raises:
        ValueError: There is none.
    """
    place = string.ascii_uppercase.find(letter.strip().upper()) if letter.strip() else -1
    return by_number(choices, place)


def by_number(choices: Sequence[str], number: Any) -> str:
    """The choice of a number, from 0.

    Raises:
        ValueError: There is none.
    """
    if not 0 <= int(number) < len(choices):
        raise ValueError(f"its answer is none of its {len(choices)} choices")
    return choices[int(number)]


def unlettered(options: Sequence[str]) -> list[str]:
    """Options without the letters that stand before them ("A. a dog"), if the first one has its letter."""
    if not options or not _lettered(options[0], "A"):
        return [option.strip() for option in options]
    pairs = zip(string.ascii_uppercase, options, strict=False)
    return [option.strip()[2:].strip() if _lettered(option, letter) else option.strip() for letter, option in pairs]


def _lettered(option: str, letter: str) -> bool:
    return re.match(rf"{letter}[.):]", option.strip()) is not None
