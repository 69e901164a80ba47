"""How many visual tokens every decoder layer gets: a table of rates, from a search or a formula, and what it costs.

A schedule holds rates, no counts, so that it goes with any number of tokens; any score may say which tokens stay
(`vtprune.methods.gsearch`). It is found by `vtprune.schedule_search` and kept in a small JSON file:

    {"vtprune schedule": 1, "rates": [1.0, 1.0, 0.6, 0.2], "score": "text_queries_ahead", "about": {...}}
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from vtprune.files import check_file, reason

VERSION = 1
MARK = "vtprune schedule"
MERGE = 0.02
BISECTIONS = 60

Rates = tuple[float, ...]
Measure = Callable[[Rates], float]
"""What a schedule costs: a number that grows with every rate."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which share of a prompt's visual tokens enters each decoder layer.

    Args:
        rates: One for every layer, in [0, 1], never growing; the first one is 1, as nothing can rank tokens before.
        score: The score that it was found with, by name; None if it does not say.
        about: How it was found; for people.

    Raises:
        TypeError: A rate is no number.
        ValueError: The rates are no such table.
    """

    rates: Rates
    score: str | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Check the rates."""
        allowed = "rates must be numbers in [0, 1] that never grow from layer to layer, the first one 1"
        if isinstance(self.rates, str) or not isinstance(self.rates, Sequence):
            raise TypeError(f"{allowed}; got {self.rates!r}.")
        if not all(isinstance(rate, Real) and not isinstance(rate, bool) for rate in self.rates):
            raise TypeError(f"{allowed}; got {self.rates!r}.")
        rates = tuple(map(float, self.rates))
        falling = all(0 <= later <= earlier for earlier, later in itertools.pairwise(rates))
        if not rates or rates[0] != 1 or not falling:
            raise ValueError(f"{allowed}; got {list(self.rates)}.")
        if not (self.score is None or isinstance(self.score, str)):
            raise TypeError(f"score must be the name of a score or None, got {self.score!r}.")
        object.__setattr__(self, "rates", rates)

    @property
    def mean(self) -> float:
        """Share of the visual tokens that a layer sees on average, the first layer included."""
        return mean(self.rates)

    def merged(self, within: float = MERGE) -> Schedule:
        """Layers whose rates differ by less than `within` get the largest of them, so that there are fewer cuts."""
        return dataclasses.replace(self, rates=merged_rates(self.rates, within))

    def cuts(self) -> dict[int, float]:
        """The layers that get fewer tokens than the one before, and their rates."""
        pairs = itertools.pairwise(self.rates)
        return {layer: rate for layer, (before, rate) in enumerate(pairs, 1) if rate < before}

    def save(self, path: str | Path) -> None:
        """Write the JSON file."""
        document = {MARK: VERSION, "rates": list(self.rates), "score": self.score, "about": dict(self.about)}
        Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Schedule:
        """Read the JSON file.

        Raises:
            FileNotFoundError, IsADirectoryError, PermissionError: As `vtprune.files.check_file`.
            ValueError: It holds something else, or was written by a later version.
        """
        path = Path(path)
        check_file(path, "schedule")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"schedule {str(path)!r} is no JSON: {reason(error)}.") from None
        if not isinstance(document, dict) or MARK not in document:
            raise ValueError(f"schedule {str(path)!r} is none: it has no {MARK!r}; write one by Schedule.save.")
        if document[MARK] != VERSION:
            raise ValueError(f"schedule {str(path)!r} is of version {document[MARK]!r}; this vtprune reads {VERSION}.")
        about = document.get("about", {})
        try:
            if not isinstance(about, dict):
                raise TypeError(f"about must be a table, got {about!r}.")
            return Schedule(document.get("rates", ()), document.get("score"), about)
        except (TypeError, ValueError) as error:
            raise ValueError(f"schedule {str(path)!r} cannot be used: {error}") from None


def mean(rates: Sequence[float]) -> float:
    """Mean of the rates: what a layer sees on average."""
    return math.fsum(rates) / len(rates)


def merged_rates(rates: Sequence[float], within: float = MERGE) -> Rates:
    """Rates in steps: as long as they are less than `within` below the first one of a step, they are that one."""
    steps: list[float] = []
    for rate in rates:
        steps.append(steps[-1] if steps and (steps[-1] - rate < within or rate == steps[-1]) else rate)
    return tuple(steps)


def ramp_rates(layers: int) -> Rates:
    """The straight line from 1 at the first layer to 0 behind the last one."""
    return tuple(1 - layer / layers for layer in range(layers))


def sigmoid_rates(layers: int, steepness: float, centre: float, floor: float = 0.0, *, whole: int = 1) -> Rates:
    """A falling sigmoid over depth.

    Args:
        layers: Number of decoder layers; the i-th lies at depth i / layers, the last at 1.
        steepness: How fast it falls, > 0.
        centre: The depth at which half has left; any number.
        floor: What never leaves, in [0, 1].
        whole: So many first layers get everything all the same.
    """
    falling = (0.5 - 0.5 * math.tanh(steepness * (layer / layers - centre) / 2) for layer in range(1, layers + 1))
    return tuple(1.0 if i < whole else floor + (1 - floor) * x for i, x in enumerate(falling))


def centred(
    budget: float,
    layers: int,
    steepness: float,
    floor: float = 0.0,
    *,
    whole: int = 1,
    within: float = 0.0,
    measure: Measure = mean,
) -> float:
    """The centre of the largest sigmoid that costs at most `budget`, by bisection.

    Args:
        budget: What `measure` may say.
        layers: Number of decoder layers.
        steepness: Of the sigmoid.
        floor: Of the sigmoid.
        whole: Of the sigmoid.
        within: Layers that differ by less are merged before they are measured; see `merged_rates`.
        measure: What a schedule costs.

    Raises:
        ValueError: Even a schedule that lets everything above the floor leave behind the `whole` layers costs more.
    """

    def cost(centre: float) -> float:
        return measure(merged_rates(sigmoid_rates(layers, steepness, centre, floor, whole=whole), within))

    low, high = -40 / steepness, 1 + 40 / steepness
    least = cost(low)
    if least > budget * (1 + 1e-9):
        raise ValueError(
            f"a budget of {budget:g} cannot be met: if all but a share of {floor:g} leaves behind the first of "
            f"{layers} layers, {least:.3g} is left; allow more, or let tokens leave before the decoder."
        )
    if cost(high) <= budget:
        return high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low


def fitted_sigmoid(rates: Sequence[float], *, whole: int = 1) -> tuple[float, float, float]:
    """Steepness, centre and floor of the sigmoid nearest to a schedule, by least squares on a grid."""
    best = (math.inf, 1.0, 0.5, 0.0)
    for steepness in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 40.0, 60.0):
        for floor in (0.0, 0.02, 0.05, 0.1, 0.2):
            for place in range(-10, 31):
                near = sigmoid_rates(len(rates), steepness, place / 20, floor, whole=whole)
                error = math.fsum((x - y) ** 2 for x, y in zip(rates, near, strict=True))
                best = min(best, (error, steepness, place / 20, floor))
    return best[1:]


@dataclasses.dataclass(frozen=True)
class PrefillCost:
    """FLOPs of a prefill by a schedule, as reports count them: multiply and add are two, attention is dense.

    Args:
        layers: Of every decoder layer, FLOPs of its linear layers for one token, and heads times head_dim.
        visual: Visual tokens of the prompt that reach the decoder.
        text: Its other tokens.
        other: FLOPs of encoder and projector.
    """

    layers: tuple[tuple[int, int], ...]
    visual: int
    text: int
    other: int = 0

    def flops(self, rates: Sequence[float]) -> float:
        """FLOPs with so many visual tokens in every layer."""
        total = float(self.other)
        for rate, (linear, width) in zip(rates, self.layers, strict=True):
            tokens = self.text + math.ceil(rate * self.visual - 1e-6)
            total += tokens * linear + 4 * tokens * tokens * width
        return total

    def share(self, rates: Sequence[float]) -> float:
        """The same as a share of what the unpruned model needs."""
        return self.flops(rates) / self.flops([1.0] * len(self.layers))
