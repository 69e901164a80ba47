"""Medians, quartiles, ratios of them, and whether a ratio says anything."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one value; quartiles are interpolated."""
        if len(values) == 1:
            return Spread(values[0], values[0], values[0])
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(median, lower, upper)

    def overlaps(self, other: Spread) -> bool:
        """Whether the two ranges between the quartiles have a value in common."""
        return self.lower <= other.upper and other.lower <= self.upper

    def to_dict(self) -> dict[str, float]:
        """Median and quartiles, ready for JSON."""
        return {"median": self.median, "q1": self.lower, "q3": self.upper}


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One median divided by another.

    Args:
        value: The ratio of the medians.
        significant: Whether the ranges between the quartiles of the two do not overlap.
    """

    value: float
    significant: bool

    @staticmethod
    def of(above: Spread, below: Spread) -> Ratio | None:
        """`above` / `below`; None where nothing was measured below."""
        return Ratio(above.median / below.median, not above.overlaps(below)) if below.median > 0 else None


def drift(values: Sequence[float]) -> float:
    """How much the median of the second half differs from that of the first, as a share of the first."""
    half = len(values) // 2
    if not half:
        return 0.0
    first, second = statistics.median(values[:half]), statistics.median(values[-half:])
    return abs(second - first) / first if first > 0 else 0.0
