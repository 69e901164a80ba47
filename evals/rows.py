"""The rows of a table: what is applied to the model, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import vtprune
from vtprune.evals.suite import evaluate
from vtprune.methods.base import Place
from vtprune.methods.parse import parse_method
from vtprune.report import Report


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


def run_row(
    model: Any,
    processor: Any,
    row: Row,
    *,
    evaluate: Callable[..., dict[str, Any]] = evaluate,
    on_batch: Callable[[int], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate one row; `on_batch` and `options` go to `evaluate`, or what takes its place.

    Returns:
        The result of `evaluate` with "seconds" and, with a method, what the reports of all batches add up to: visual
        tokens "tokens_before", "tokens_after" the last place, and "tokens_seen" by the decoder's layers on average, and
        "prefill_flops" and "cache_bytes" (shares of the unpruned model's; the cache right after the prefill); for a
        method that refuses the budget or the model only "unsupported", which says why.
    """
    if row.method is not None:
        try:
            vtprune.apply(model, row.method, keep=row.keep)
        except ValueError as error:
            return {"unsupported": str(error)}
    reports: list[Report] = []

    def after_batch(questions: int) -> None:
        report = vtprune.report(model) if row.method is not None else None
        if report is not None:
            reports.append(report)
        if on_batch is not None:
            on_batch(questions)

    try:
        start = time.monotonic()
        result = evaluate(model, processor, blank=row.blank, on_batch=after_batch, **options)
        result["seconds"] = round(time.monotonic() - start, 1)
    finally:
        if row.method is not None:
            vtprune.remove(model)
    if reports:
        result["tokens_before"] = sum(report.visual_tokens_before for report in reports)
        result["tokens_after"] = sum(report.visual_tokens_after for report in reports)
        layers = model.config.get_text_config().num_hidden_layers
        result["tokens_seen"] = round(sum(seen_tokens(report, layers) for report in reports), 1)
        flops = sum(report.prefill_flops_after for report in reports)
        result["prefill_flops"] = round(flops / sum(report.prefill_flops_before for report in reports), 4)
        held = sum(report.kv_bytes_after or 0 for report in reports)
        result["cache_bytes"] = round(held / sum(report.kv_bytes_before or 0 for report in reports), 4)
    return result


def seen_tokens(report: Report, layers: int) -> float:
    """Visual tokens that a layer of the decoder sees, on average over so many layers."""
    cuts = [(x.layer, x) for x in report.places if x.place == Place.DECODER_LAYER and x.layer is not None]
    tokens = cuts[0][1].tokens_before if cuts else report.visual_tokens_after
    seen, start = 0, 0
    for layer, cut in cuts:
        seen += (layer - start) * tokens
        start, tokens = layer, cut.tokens_after
    return (seen + (layers - start) * tokens) / layers
