"""The tables of a run's page, which the terminal shows too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from vtprune.evals.pages.compare import Section
from vtprune.evals.pages.lines import Panel, View
from vtprune.evals.pages.runs import UNPRUNED, Run
from vtprune.evals.pages.words import NOTHING, amount, percent, percents, point_range, points, short, value_in_words


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number.

    Args:
        value: As it is read.
        beside: What belongs to it, smaller: an interval, a share.
        strong: Whether it is a difference to the unpruned model that is none of chance, by its interval.
        front: Whether the configuration is on the Pareto front of this cost.
    """

    value: str
    beside: str = ""
    strong: bool = False
    front: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Configurations, a row each.

    Args:
        heads: Of the columns, without that of the names.
        rows: Of each configuration its name and cells.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def overview(runs: Sequence[tuple[str, Run]], panel: Panel) -> Table:
    """Quality and costs of all configurations; columns of which nothing is known are left out.

    Args:
        runs: With their names; "" for a run that stands alone. They have right answers all or none.
        panel: The same runs, which says what is on the front.
    """
    fronts = panel.fronts()
    rows = [
        (name, one, fronts.get((name, one["name"]), frozenset())) for name, run in runs for one in run.configurations
    ]
    columns: dict[str, Callable[[dict[str, Any], frozenset[View]], Cell]] = {
        runs[0][1].quality: lambda one, front: Cell(percent(one["accuracy"]), percents(one["interval"])),
        "difference, points": lambda one, front: difference(one["against_unpruned"]),
        "same answer": lambda one, front: _agreement(one),
        "visual tokens": lambda one, front: Cell(
            short(one["visual_tokens_mean"]), _share(one, "visual_tokens_share"), front="tokens" in front
        ),
        "prefill FLOPs": lambda one, front: Cell(
            amount(one["prefill_flops_mean"]), _share(one, "prefill_flops_share"), front="flops" in front
        ),
        "KV cache": lambda one, front: Cell(amount(one["kv_bytes_mean"], "B", 1024), _share(one, "kv_bytes_share")),
        "first token, ms": lambda one, front: Cell(
            short(one["ttft_ms"]), _share(one, "ttft_share"), front="ttft" in front
        ),
        "KL, nats": lambda one, front: Cell(short((one["fidelity"] or {}).get("kl"))),
    }
    if any(run.summary["failed"] for _, run in runs):
        columns["failed"] = lambda one, front: Cell(str(one["failed"]))
    cells = {head: [column(one, front) for _, one, front in rows] for head, column in columns.items()}
    known = {head: column for head, column in cells.items() if any(cell.value != NOTHING for cell in column)}
    names = [full_name(name, one["name"]) for name, one, _ in rows]
    return Table(tuple(known), tuple(zip(names, zip(*known.values(), strict=True), strict=True)))


def full_name(run: str, configuration: str) -> str:
    """A configuration among those of several runs."""
    return f"{run}: {configuration}" if run else configuration


def by_kind(run: Run) -> Table | None:
    """Quality by kind of question; None if there are not at least two kinds."""
    kinds = list(dict.fromkeys(kind for one in run.configurations for kind in one["kinds"]))
    if len(kinds) < 2:
        return None
    asked = run.configurations[0]["kinds"]
    heads = tuple(f"{kind} ({asked[kind]['n']})" if kind in asked else kind for kind in kinds)
    return Table(
        heads,
        tuple((one["name"], tuple(_kind(one["kinds"].get(kind)) for kind in kinds)) for one in run.configurations),
    )


def details(run: Run) -> Table | None:
    """Further numbers of the metric; None if it has none."""
    names = list(dict.fromkeys(name for one in run.configurations for name in one["details"]))
    if not names:
        return None
    rows = [(one["name"], tuple(Cell(short(one["details"].get(name))) for name in names)) for one in run.configurations]
    return Table(tuple(name.replace("_", " ") for name in names), tuple(rows))


def differences(section: Section) -> Table | None:
    """Of the later runs to the first one; None if there is one run."""
    rows = [
        (
            full_name(one.run, one.configuration),
            (
                Cell(full_name(one.against_run, one.against)),
                Cell(str(one.n)),
                difference({"difference": one.difference, "interval": one.interval}),
            ),
        )
        for one in section.differences
    ]
    return Table(("compared with", "questions of both", "difference, points"), tuple(rows)) if rows else None


def about_runs(runs: Sequence[tuple[str, Run]]) -> Table:
    """What tells runs apart."""
    rows = []
    for name, run in runs:
        settings, environment = run.summary["settings"], run.summary["environment"]
        device = environment.get("cpu") if environment.get("device") == "cpu" else environment.get("device")
        said = (
            run.date,
            f"{run.summary['n']:,}",
            settings.get("dtype"),
            settings.get("batch_size"),
            device,
            environment.get("vtprune"),
            environment.get("transformers"),
        )
        rows.append((name, tuple(Cell(value_in_words(value)) for value in said)))
    heads = ("date", "questions", "numbers", "batch size", "machine", "vtprune", "transformers")
    return Table(heads, tuple(rows))


def difference(against: dict[str, Any] | None) -> Cell:
    """A paired difference with its interval."""
    if against is None or against["difference"] is None:
        return Cell(NOTHING)
    interval = against["interval"]
    strong = interval is not None and (interval[0] > 0 or interval[1] < 0)
    return Cell(points(against["difference"]), point_range(interval), strong)


def _agreement(one: dict[str, Any]) -> Cell:
    fidelity = one["fidelity"]
    if one["name"] == UNPRUNED or fidelity is None:
        return Cell(NOTHING)
    return Cell(percent(fidelity["agreement"]), percents(fidelity["agreement_interval"]))


def _kind(of: dict[str, Any] | None) -> Cell:
    if of is None:
        return Cell(NOTHING)
    against = difference(of["against_unpruned"])
    return Cell(percent(of["accuracy"]), "" if against.value == NOTHING else against.value, against.strong)


def _share(one: dict[str, Any], name: str) -> str:
    return "" if one["name"] == UNPRUNED or one[name] is None else percent(one[name], 0)
