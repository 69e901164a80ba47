"""The rows of a table: what is applied to the model, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import vtprune
from vtprune.evals.suite import evaluate
from vtprune.methods.parse import parse_method


@dataclass(frozen=True)
class Row:
    """A line of the table: a method, as it is written for `vtprune.apply`, with its budget; or none of it."""

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
