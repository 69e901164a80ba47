"""What pruning costs, as a table: unpruned, blank pictures, and every method at every budget, on the same questions.

python -m vtprune.evals.table --model DIR --limit 2000 --methods divprune,fastv:layer=2 --keep 0.5,0.25 --out FILE.json
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtprune
from vtprune.evals.questions import KINDS
from vtprune.evals.suite import evaluate, scene_questions
from vtprune.methods.parse import parse_method


@dataclass(frozen=True)
class Row:
    """A line of the table: a method as it is written for `vtprune.apply` with its budget, or none; blank pictures or not."""

    method: str | None = None
    keep: float | int | None = None
    blank: bool = False

    @property
    def name(self) -> str:
        """What the line is called; no two rows of a table share it."""
        if self.method is None:
            return "blank pictures" if self.blank else "unpruned"
        return self.method if self.keep is None else f"{self.method} keep={self.keep}"


def plan(methods: Sequence[str], budgets: Sequence[float | int]) -> list[Row]:
    """The rows: unpruned, blank, each method at each budget; those that take none, or are written with one, once."""
    rows = [Row(), Row(blank=True)]
    for method in methods:
        name, parameters = parse_method(method)
        known = vtprune.methods(name)
        if not known:
            raise ValueError(f"methods must be among {[m['name'] for m in vtprune.methods()]}, got {name!r}")
        takes_budget = "keep" in known[0]["parameters"] and "keep" not in parameters
        rows += [Row(method, keep) for keep in budgets] if takes_budget else [Row(method)]
    return list(dict.fromkeys(rows))


def run_row(model: Any, processor: Any, row: Row, **options: Any) -> dict[str, Any]:
    """Evaluate one row; `options` go to `evaluate`.

    Returns:
        The result of `evaluate` with "seconds" and, with a method, "tokens_before", "tokens_after" and "prefill_flops"
        (share of the unpruned model's) of the last batch; for a method that refuses the budget or the model only
        "unsupported", which says why.
    """
    if row.method is not None:
        try:
            vtprune.apply(model, row.method, keep=row.keep)
        except ValueError as error:
            return {"unsupported": str(error)}
    try:
        start = time.monotonic()
        result = evaluate(model, processor, blank=row.blank, **options)
        result["seconds"] = round(time.monotonic() - start, 1)
        report = vtprune.report(model) if row.method is not None else None
        if report is not None:
            result["tokens_before"], result["tokens_after"] = report.visual_tokens_before, report.visual_tokens_after
            result["prefill_flops"] = round(report.prefill_flops_after / report.prefill_flops_before, 4)
        return result
    finally:
        if row.method is not None:
            vtprune.remove(model)


def run_table(
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    out: Path,
    *,
    settings: dict[str, Any],
    limit: int,
    seed: int = 0,
    batch_size: int = 32,
    on_row: Callable[[Row], Callable[[int], None] | None] = lambda row: None,
) -> dict[str, Any]:
    """Evaluate the rows that `out` does not hold yet; after each one the JSON and the Markdown beside it are written.

    Args:
        model: The model.
        processor: Its processor.
        rows: See `plan`.
        out: JSON file, kept from run to run.
        settings: What else the results depend on; saved with them.
        limit: Number of questions.
        seed: Which test set, see `scene_questions`.
        batch_size: Questions per batch.
        on_row: Called before each row; what it returns is called with the number of questions of each batch.

    Raises:
        ValueError: If `out` holds results with other settings.
    """
    settings = {**settings, "limit": limit, "seed": seed, "batch_size": batch_size}
    table: dict[str, Any] = {"settings": settings, "rows": {}}
    if out.exists():
        table = json.loads(out.read_text())
        if table["settings"] != settings:
            raise ValueError(f"out must be a new file or hold results with {settings}, got {table['settings']}")
    questions = scene_questions(limit, seed)
    for row in rows:
        if row.name not in table["rows"]:
            result = run_row(model, processor, row, questions=questions, batch_size=batch_size, on_batch=on_row(row))
            table["rows"][row.name] = result
            _write(out, json.dumps(table, indent=2) + "\n")
            _write(out.with_suffix(".md"), markdown(table))
    return table


def markdown(table: dict[str, Any]) -> str:
    """The table in Markdown, accuracies in percent."""
    lines = [
        "| | " + " | ".join(("all", *KINDS)) + " | prefill FLOPs |",
        "|---" + "|---:" * (len(KINDS) + 2) + "|",
    ]
    for name, row in table["rows"].items():
        if "unsupported" in row:
            cells = ["-"] * (len(KINDS) + 2)
        else:
            shares = [row["accuracy"], *(row["by_kind"].get(kind) for kind in KINDS)]
            cells = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
            cells.append(f"{100 * row['prefill_flops']:.0f} %" if "prefill_flops" in row else "100 %")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    os.replace(fresh, path)


def _separate(text: str) -> list[str]:
    """Split a list of methods at the commas between them: behind a colon, a comma followed by name= goes on."""
    found: list[str] = []
    for piece in text.split(","):
        goes_on = found and ":" in found[-1] and ("=" in piece.partition(":")[0] or found[-1].count("[") > found[-1].count("]"))
        if goes_on:
            found[-1] += f",{piece}"
        else:
            found.append(piece.strip())
    return found
