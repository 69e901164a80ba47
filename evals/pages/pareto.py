"""Which configurations are worth having: those that no other one beats in both cost and quality."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Whether each point is on the Pareto front.

    A point is on it unless another one costs no more and is no worse, and is better in one of the two. Equal points are
    on it together. A point of unknown cost or quality is not on it, and keeps no other away.

    Args:
        points: (cost, quality) of each configuration; little cost and much quality are good.

    Raises:
        ValueError: If a number is NaN.
    """
    for place, point in enumerate(points):
        if any(value is not None and math.isnan(value) for value in point):
            raise ValueError(f"points must be numbers or None, got {point} at {place}")
    known = [(cost, quality) for cost, quality in points if cost is not None and quality is not None]
    return [
        cost is not None and quality is not None and not any(_beats(other, (cost, quality)) for other in known)
        for cost, quality in points
    ]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other
