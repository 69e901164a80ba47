"""The figures of an evaluation as a table on a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table


def summary_table(summary: dict[str, Any]) -> Table:
    """One row per configuration; FLOPs and cache as shares of the unpruned model's, "same" are equal answers.

    Args:
        summary: As in a run's `summary.json`.
    """
    title = f"{summary['model']}, {summary['name']}: {summary['n']} questions, {summary['metric']}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("", overflow="fold", min_width=13)
    heads = ("right, %", "against\nunpruned", "same, %", "visual\ntokens", "FLOPs", "cache", "TTFT, ms")
    for head in heads:
        table.add_column(head, justify="right")
    for figures in summary["configurations"]:
        table.add_row(
            figures["name"],
            _with_interval(figures["accuracy"], figures["interval"]),
            _difference(figures["against_unpruned"]),
            f"{100 * figures['fidelity']['agreement']:.1f}" if figures["fidelity"] else "",
            _number(figures["visual_tokens_mean"], "{:,.0f}"),
            _number(figures["prefill_flops_share"], "{:.0%}"),
            _number(figures["kv_bytes_share"], "{:.0%}"),
            _number(figures["ttft_ms"], "{:,.0f}"),
        )
    return table


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "-"
    said = f"{100 * value:.1f}"
    return said if interval is None else f"{said}\n{100 * interval[0]:.0f} to {100 * interval[1]:.0f}"


def _difference(against: dict[str, Any] | None) -> str:
    if against is None:
        return ""
    said = f"{100 * against['difference']:+.1f}"
    interval = against["interval"]
    return said if interval is None else f"{said}\n{100 * interval[0]:+.0f} to {100 * interval[1]:+.0f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
