"""What plots show: quality against what it costs, a line for each method over its budgets."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

from vtprune.evals.pages.pareto import pareto
from vtprune.evals.pages.runs import UNPRUNED, Run
from vtprune.evals.pages.words import NBSP, amount, short

View = Literal["tokens", "flops", "ttft"]
VIEWS: tuple[View, ...] = ("tokens", "flops", "ttft")
COSTS: dict[View, str] = {"tokens": "visual_tokens_share", "flops": "prefill_flops_share", "ttft": "ttft_share"}
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Dot:
    """A configuration. Costs are shares of the unpruned model's, by view; quality is a share too.

    Args:
        name: Of the configuration.
        quality: Mean score, or agreement with the unpruned model.
        interval: Of 95 %; None if unknown.
        costs: None where a cost was not measured.
        spent: The costs of a question themselves, in words; "" where that is not known.
        budget: In words; "" for the unpruned model.
        front: In which views it is on the Pareto front.
    """

    name: str
    quality: float
    interval: Interval | None
    costs: dict[View, float | None]
    spent: dict[View, str]
    budget: str = ""
    front: frozenset[View] = frozenset()


@dataclasses.dataclass(frozen=True)
class Line:
    """A method in a run, its dots in order of budget."""

    run: str
    method: str
    dots: tuple[Dot, ...]


@dataclasses.dataclass(frozen=True)
class Panel:
    """What is drawn together: runs of one model on the same questions.

    Args:
        lines: One for each method of each run.
        unpruned: The unpruned model of each run.
        quality: What the quality is, in words.
        costs: What is 100 % on each axis, in words; "" where the runs differ.
    """

    lines: tuple[Line, ...]
    unpruned: tuple[Line, ...]
    quality: str
    costs: dict[View, str]

    def fronts(self) -> dict[tuple[str, str], frozenset[View]]:
        """By run and configuration: in which views it is on the Pareto front."""
        return {(line.run, dot.name): dot.front for line in (*self.unpruned, *self.lines) for dot in line.dots}


def make_panel(runs: Sequence[tuple[str, Run]]) -> Panel:
    """What is known of some runs, which have right answers all or none.

    The front of one run is that of its summary; of several, that of all of them together.

    Args:
        runs: With their names; "" for a run that stands alone.
    """
    lines: list[Line] = []
    unpruned: list[Line] = []
    for name, run in runs:
        found: dict[str, list[tuple[Any, Dot]]] = {}
        for one in run.configurations:
            dot = _dot(one, run.judged)
            if dot is not None and one["name"] == UNPRUNED:
                unpruned.append(Line(name, UNPRUNED, (dot,)))
            elif dot is not None:
                found.setdefault(one["method"], []).append((_budget(one), dot))
        for method, dots in found.items():
            dots.sort(key=lambda pair: pair[0])
            lines.append(Line(name, method, tuple(dot for _, dot in dots)))
    if len(runs) > 1:
        marked = _with_front([*unpruned, *lines])
        unpruned, lines = marked[: len(unpruned)], marked[len(unpruned) :]
    # A share of time is the median of ratios batch by batch, and 100 % of it no time that could be named.
    costs: list[dict[View, str]] = [{**_spent(run.configurations[0]), "ttft": ""} for _, run in runs]
    same: dict[View, str] = {
        view: costs[0][view] if all(x[view] == costs[0][view] for x in costs) else "" for view in VIEWS
    }
    return Panel(tuple(lines), tuple(unpruned), runs[0][1].quality, same)


def _spent(one: dict[str, Any]) -> dict[View, str]:
    """What a question takes, in words; "" where that is not known."""
    tokens, flops, ttft = (one[name] for name in ("visual_tokens_mean", "prefill_flops_mean", "ttft_ms"))
    return {
        "tokens": "" if tokens is None else short(tokens),
        "flops": "" if flops is None else amount(flops, "FLOPs"),
        "ttft": "" if ttft is None else f"{short(ttft)}{NBSP}ms",
    }


def _budget_in_words(one: dict[str, Any]) -> str:
    if one["name"] == UNPRUNED:
        return ""
    keep = one["keep"]
    return "as written" if keep is None else f"{keep:g}" if isinstance(keep, float) else f"{keep} tokens"


def _dot(one: dict[str, Any], judged: bool) -> Dot | None:
    """None if nothing is known of its quality."""
    costs: dict[View, float | None] = {view: one[name] for view, name in COSTS.items()}
    if one["name"] == UNPRUNED:
        costs = dict.fromkeys(VIEWS, 1.0)
    if judged:
        quality, interval = one["accuracy"], one["interval"]
    elif one["name"] == UNPRUNED:
        quality, interval = 1.0, None
    else:
        fidelity = one["fidelity"] or {}
        quality, interval = fidelity.get("agreement"), fidelity.get("agreement_interval")
    if quality is None:
        return None
    front = frozenset(view for view in VIEWS if one["pareto"][view])
    sure = tuple(interval) if interval else None
    return Dot(one["name"], quality, sure, costs, _spent(one), _budget_in_words(one), front)


def _budget(one: dict[str, Any]) -> tuple[float, float]:
    """What budgets are sorted by: the tokens that are left, and the number as it was given."""
    return (one["visual_tokens_mean"] or 0, one["keep"] or 0)


def _with_front(lines: Sequence[Line]) -> list[Line]:
    dots = [dot for line in lines for dot in line.dots]
    fronts = {view: iter(pareto([(dot.costs[view], dot.quality) for dot in dots])) for view in VIEWS}
    marked = iter([dataclasses.replace(dot, front=frozenset(v for v in VIEWS if next(fronts[v]))) for dot in dots])
    return [dataclasses.replace(line, dots=tuple(itertools.islice(marked, len(line.dots)))) for line in lines]
