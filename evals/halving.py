"""Successive halving: many candidates on a few questions, the better ones on more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

ROUNDS = (16, 32, 64, 192)
"""Questions that have been asked by the end of each round."""
FACTOR = 3
"""Of so many candidates one goes on to the next round."""
FINALISTS = 4
"""At least so many are in the last round, if there are."""


def survivors(count: int, factor: int = FACTOR, least: int = FINALISTS) -> int:
    """How many of so many candidates go on."""
    return min(count, max(least, math.ceil(count / factor)))


def halve(
    candidates: Sequence[T],
    scores: Callable[[T, int], Sequence[float]],
    rounds: Sequence[int] = ROUNDS,
    on_candidate: Callable[[int, int, int], None] = lambda number, done, total: None,
) -> list[T]:
    """The candidates of the last round, the best one first.

    Args:
        candidates: What there is; of equally good ones those that stand first go on.
        scores: Scores of a candidate on the first so many questions; the higher the better. All answer the same ones.
        rounds: Questions per round, ascending.
        on_candidate: Called before every candidate with the round's number, how many are done, and how many there are.
    """
    left = list(candidates)
    for number, questions in enumerate(rounds):
        means = []
        for done, one in enumerate(left):
            on_candidate(number, done, len(left))
            found = scores(one, questions)
            means.append(math.fsum(found) / len(found))
        order = sorted(range(len(left)), key=lambda i: (-means[i], i))
        last = number + 1 == len(rounds)
        left = [left[i] for i in (order if last else order[: survivors(len(left))])]
    return left


def standard_error(differences: Sequence[float]) -> float:
    """Of the mean of paired differences."""
    n = len(differences)
    mean = math.fsum(differences) / n
    return math.sqrt(math.fsum((x - mean) ** 2 for x in differences) / max(n - 1, 1) / n)


def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share, by Wilson."""
    share, spread = right / asked, z * z / asked
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / asked + spread / asked / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
