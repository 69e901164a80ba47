"""Times the untouched model, a method and its ideal in alternation, and counts what each of them costs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import vtprune
from vtprune.bench.clock import PHASES, time_request
from vtprune.bench.count import Counts, count_request
from vtprune.bench.generate import Requested
from vtprune.bench.plan import Plan, record
from vtprune.bench.replay import replaying
from vtprune.bench.stats import Ratio, Spread, drift
from vtprune.methods.base import Method
from vtprune.report import Report

Arm = Callable[[], Any]
Progress = Callable[[int, int], None]

BUSY = 0.1  # halves of a run whose medians differ by more than this share were disturbed


@dataclasses.dataclass(frozen=True)
class Settings:
    """How often and how much is measured.

    Args:
        new_tokens: Tokens that are decoded; 1 measures no decoding.
        repeats: Measurements of each arm.
        warmup: Rounds before them that do not count.
        seed: Of the order of the arms, which is drawn anew in every round.
    """

    new_tokens: int = 32
    repeats: int = 10
    warmup: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("new_tokens", 1), ("repeats", 1), ("warmup", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class Measured:
    """One arm: all times of its phases in milliseconds, in the order in which they were taken, and its costs."""

    times: dict[str, list[float]]
    counts: Counts

    def spread(self, phase: str) -> Spread | None:
        """Of a phase; None if it did not run."""
        values = self.times.get(phase)
        return Spread.of(values) if values else None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A method beside the untouched model and its ideal, all measured in one run."""

    label: str
    baseline: Measured
    method: Measured
    ideal: Measured
    report: Report
    lengths: tuple[int, ...]

    def speedup(self, phase: str) -> Ratio | None:
        """Time of the untouched model divided by that of the method."""
        return _ratio(self.baseline, self.method, phase)

    def overhead(self, phase: str) -> Ratio | None:
        """Time of the method divided by that of the ideal."""
        return _ratio(self.method, self.ideal, phase)

    def arms(self) -> dict[str, Measured]:
        """By name."""
        return {"baseline": self.baseline, "method": self.method, "ideal": self.ideal}

    def warnings(self) -> list[str]:
        """What speaks against these figures."""
        found = []
        for name, arm in self.arms().items():
            moved = drift(arm.times["ttft"])
            if moved > BUSY:
                found.append(
                    f"{name}: the time to first token moved by {moved:.0%} between the halves of the run; "
                    "the machine may be busy."
                )
        return found


def _ratio(above: Measured, below: Measured, phase: str) -> Ratio | None:
    first, second = above.spread(phase), below.spread(phase)
    return Ratio.of(first, second) if first and second else None


def measure(
    model: Any,
    inputs: Any,
    chains: Mapping[str, Sequence[Method]],
    settings: Settings,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Measure chains of methods on one prompt, all in alternation with one untouched model.

    Args:
        model: A model without methods.
        inputs: What its processor makes of the prompt.
        chains: By label.
        settings: How often and how much.
        progress: Called with the number of timed requests that are done, and of all.

    Raises:
        ValueError: A method does not fit the model, or its ideal cannot be replayed.
    """
    request = Requested(inputs, settings.new_tokens)
    plans: dict[str, Plan] = {label: record(model, chain, request) for label, chain in chains.items()}
    arms: dict[tuple[str, str], Arm] = {("", "baseline"): contextlib.nullcontext}
    for label, chain in chains.items():
        arms[label, "method"] = functools.partial(vtprune.applied, model, chain)
        arms[label, "ideal"] = functools.partial(replaying, model, plans[label])
    counts = {key: count_request(model, request, arm=arm) for key, arm in arms.items()}
    times = alternate(model, request, arms, settings, progress)
    measured = {key: Measured(times[key], counts[key]) for key in arms}
    return [
        Outcome(
            label,
            measured["", "baseline"],
            measured[label, "method"],
            measured[label, "ideal"],
            plans[label].report,
            plans[label].lengths,
        )
        for label in chains
    ]


def alternate(
    model: Any, request: Requested, arms: dict[tuple[str, str], Arm], settings: Settings, progress: Progress | None
) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Time a request under several arms, named by a label and a role, one after the other in every round.

    Returns:
        For each arm the milliseconds of each phase, in the order in which they were taken.
    """
    times: dict[tuple[str, str], dict[str, list[float]]] = {key: {} for key in arms}
    order = random.Random(settings.seed)
    rounds = settings.warmup + settings.repeats
    for number in range(rounds):
        keys = list(arms)
        order.shuffle(keys)  # a drift of the machine's speed meets all arms alike
        for i, key in enumerate(keys):
            with arms[key]():
                found = time_request(model, request)
            if number >= settings.warmup:
                for phase in PHASES:
                    if phase in found:
                        times[key].setdefault(phase, []).append(found[phase])
            if progress is not None:
                progress(number * len(keys) + i + 1, rounds * len(keys))
    return times
