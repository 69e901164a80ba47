"""Methods times budgets: one row of a CSV file each, written as soon as it is measured, and taken up again later."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtprune.api import build_chain
from vtprune.bench.measuring import Outcome, Progress, Settings, measure
from vtprune.bench.result import to_dict
from vtprune.budget import Budget
from vtprune.methods.base import Method

PHASES = ("ttft", "prefill", "encoder", "decode")
COLUMNS = (
    "method",
    "keep",
    "visual_tokens_before",
    "visual_tokens_after",
    "ttft_ms",
    "baseline_ttft_ms",
    "ideal_ttft_ms",
    "speedup",
    "overhead",
    *(
        f"{phase}_{what}"
        for phase in PHASES[1:]
        for what in ("ms", "q1_ms", "q3_ms", "baseline_ms", "ideal_ms", "speedup", "overhead")
    ),
    "peak_bytes",
    "baseline_peak_bytes",
    "ideal_peak_bytes",
    "kv_bytes",
    "baseline_kv_bytes",
    "model",
    "batch_size",
    "new_tokens",
    "repeats",
    "machine",
)


def points(methods: Sequence[str], keeps: Sequence[Budget]) -> dict[str, dict[Budget | None, list[Method]]]:
    """Chains by method and budget; a method that takes no further budget is one point.

    Raises:
        ValueError: An unknown method, a parameter that it does not have, or a method or budget that is given twice.
    """
    for name, values in (("--method", methods), ("--keep", keeps)):
        twice = sorted({str(x) for x in values if list(values).count(x) > 1})
        if twice:
            raise ValueError(f"{name} {', '.join(twice)} is given twice.")
    found: dict[str, dict[Budget | None, list[Method]]] = {}
    for method in methods:
        try:
            found[method] = {keep: build_chain(method, keep, {}) for keep in keeps}
        except ValueError as error:
            if "is for one method" not in str(error):
                raise
            found[method] = {None: build_chain(method, None, {})}  # exit, say: there is nothing to vary
    return found


class Table:
    """The CSV file of a sweep and the JSON file beside it, which holds all that is known of each point.

    Args:
        path: The CSV file.
        about: What must be the same in all rows: model, batch size and so on.
        resume: Go on with what the files hold.

    Raises:
        ValueError: There is such a file, and it is not to be resumed; or it is of another run.
    """

    def __init__(self, path: Path, about: dict[str, Any], resume: bool) -> None:
        self.path, self.json, self.about = path, path.with_suffix(".json"), about
        self.documents: list[dict[str, Any]] = []
        if self.path.exists() or self.json.exists():
            if not resume:
                raise ValueError(f"{str(path)!r} exists; go on with it by --resume, or name another file.")
            self.documents = self._read()

    def _read(self) -> list[dict[str, Any]]:
        try:
            held = json.loads(self.json.read_text())
            about, documents = held["about"], held["points"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{str(self.json)!r} is missing or no sweep; remove it and {self.path.name!r}.") from None
        for key, value in self.about.items():
            if about.get(key) != value:
                raise ValueError(
                    f"{str(self.json)!r} is of another run: {key} is {about.get(key)!r} there and {value!r} now."
                )
        return documents

    def done(self, method: str, keep: Budget | None) -> bool:
        """Whether a point has been measured."""
        return any(x["method"] == method and x["keep"] == keep for x in self.documents)

    def add(self, documents: Sequence[dict[str, Any]]) -> None:
        """Write further points; a file is never left half written."""
        self.documents += documents
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(self.json, json.dumps({"about": self.about, "points": self.documents}, indent=1))
        with _replacing(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """What stands in the CSV file."""
        return [row(document, self.about) for document in self.documents]

    def _write(self, path: Path, text: str) -> None:
        with _replacing(path) as part:
            part.write_text(text + "\n")


class _replacing:
    """A file to write in the place of another, which it replaces in one step at the end."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(path.name + ".part")

    def __enter__(self) -> Path:
        return self.part

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            os.replace(self.part, self.path)
        else:
            self.part.unlink(missing_ok=True)


def row(document: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """A point as a row of the CSV file."""
    found = {name: document[name] for name in COLUMNS[:9]}
    for phase in PHASES[1:]:
        measured = document[phase]
        if measured is None:
            continue
        found |= {
            f"{phase}_ms": measured["method"]["median"],
            f"{phase}_q1_ms": measured["method"]["q1"],
            f"{phase}_q3_ms": measured["method"]["q3"],
            f"{phase}_baseline_ms": measured["baseline"]["median"],
            f"{phase}_ideal_ms": measured["ideal"]["median"],
            f"{phase}_speedup": measured["speedup"],
            f"{phase}_overhead": measured["overhead"],
        }
    for what in ("peak_bytes", "kv_bytes"):
        arms = document[what]
        found |= {what: arms["method"], f"baseline_{what}": arms["baseline"], f"ideal_{what}": arms["ideal"]}
    found |= {name: about[name] for name in ("model", "batch_size", "new_tokens", "repeats", "machine")}
    return {name: found[name] for name in COLUMNS if name in found}


def sweep(
    model: Any,
    inputs: Any,
    chains: dict[str, dict[Budget | None, list[Method]]],
    settings: Settings,
    table: Table,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Measure all points that the table does not hold yet, and write each method's points when they are there.

    The points of one method are measured in alternation with one another and with one untouched model.
    """
    todo = {
        method: {keep: chain for keep, chain in by_keep.items() if not table.done(method, keep)}
        for method, by_keep in chains.items()
    }
    todo = {method: by_keep for method, by_keep in todo.items() if by_keep}
    rounds = settings.warmup + settings.repeats
    total = sum(rounds * (1 + 2 * len(by_keep)) for by_keep in todo.values())
    before, found = 0, []
    for method, by_keep in todo.items():
        report = None if progress is None else _offset(progress, before, total)
        labels = {f"{method}, keep={keep}" if keep is not None else method: keep for keep in by_keep}
        outcomes = measure(model, inputs, {name: by_keep[keep] for name, keep in labels.items()}, settings, report)
        table.add([{**to_dict(x), "method": method, "keep": labels[x.label]} for x in outcomes])
        before += rounds * (1 + 2 * len(by_keep))
        found += outcomes
    return found


def _offset(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)
