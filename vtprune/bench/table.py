"""An outcome for people: a table with the arms as columns, and what it means in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich import box
from rich.table import Table

from vtprune.bench.clock import PHASES
from vtprune.bench.measuring import Measured, Outcome
from vtprune.bench.result import flops_per_second
from vtprune.bench.stats import Ratio, Spread

NAMES = {
    "ttft": "time to first token",
    "encoder": "  encoder in all",
    "tower": "    vision tower",
    "projector": "    projector",
    "prefill": "  prefill",
    "decode": "each further token",
}


def outcome_table(outcome: Outcome) -> Table:
    """Times as medians with quartiles, then what was counted, in encoder and prefill if nothing else is said."""
    title = f"untouched, with {outcome.label}, and its ideal; milliseconds, quartiles below"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for head in ("untouched", "method", "ideal", "speedup", "overhead"):
        table.add_column(head, justify="right")
    for phase in PHASES:
        spreads = [arm.spread(phase) for arm in outcome.arms().values()]
        if spreads[0] is not None:
            ratios = (outcome.speedup(phase), outcome.overhead(phase))
            table.add_row(NAMES[phase], *map(_time, spreads), *map(_ratio, ratios))
    table.add_section()
    for name, value in _counted(outcome).items():
        numbers = [value(arm) for arm in outcome.arms().values()]
        table.add_row(name, *numbers, "", "")
    return table


def _counted(outcome: Outcome) -> dict[str, Callable[[Measured], str]]:
    def flops(arm: Measured) -> str:
        return f"{sum(arm.counts.flops.get(x, 0) for x in ('encoder', 'prefill')) / 1e9:,.2f} G"

    def speed(arm: Measured) -> str:
        value = flops_per_second(arm, "prefill")
        return "" if value is None else f"{value / 1e9:,.1f} G/s"

    def calls(what: str, *phases: str) -> Callable[[Measured], str]:
        return lambda arm: " + ".join(str(getattr(arm.counts.calls[p], what)) for p in phases if p in arm.counts.calls)

    return {
        "executed FLOPs": flops,
        "  per second, prefill": speed,
        "peak over weights": lambda arm: f"{arm.counts.peak_bytes / 2**20:,.1f} MiB",
        "KV cache": lambda arm: f"{arm.counts.kv_bytes / 2**20:,.2f} MiB",
        "operators: enc. + pre.": calls("operators", "encoder", "prefill"),
        "waits: enc. + pre.": calls("waits", "encoder", "prefill"),
        "operators: further token": calls("operators", "decode"),
    }


def _time(spread: Spread | None) -> str:
    if spread is None:
        return ""
    digits = 1 if spread.median >= 10 else 2
    return f"{spread.median:,.{digits}f}\n[dim]{spread.lower:,.{digits}f}..{spread.upper:,.{digits}f}[/]"


def _ratio(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.value:.2f}{'' if ratio.significant else ' ~'}"


def in_words(outcome: Outcome) -> list[str]:
    """What the table says, line by line."""
    report = outcome.report
    speedup, overhead = outcome.speedup("ttft"), outcome.overhead("ttft")
    prefill = outcome.overhead("prefill")
    lines = []
    if speedup is not None and overhead is not None and prefill is not None:
        lines.append(
            f"{outcome.label} keeps {report.visual_tokens_after} of {report.visual_tokens_before} visual tokens. The "
            f"first token comes {speedup.value:.2f} times as fast as from the untouched model; that is "
            f"{_percent(overhead.value)} the bare model that is given just these tokens, and in the language model's "
            f"prefill alone {_percent(prefill.value)} it."
        )
    ratios: dict[str, Ratio | None] = {"speedup": speedup, "overhead": overhead, "overhead of the prefill": prefill}
    vague = [name for name, ratio in ratios.items() if ratio is not None and not ratio.significant]
    if vague:
        lines.append(f"Within the spread of this run, and so not told apart from 1 (~): {', '.join(vague)}.")
    return lines


def _percent(value: float) -> str:
    if abs(value - 1) < 0.005:
        return "as fast as"
    return f"{value - 1:.0%} slower than" if value > 1 else f"{1 - value:.0%} faster than"


def sweep_table(rows: list[dict[str, Any]]) -> Table:
    """One line per point of a sweep."""
    table = Table(
        title="milliseconds; of time to first token, then of the prefill alone",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("method")
    for head in ("keep", "tokens", "first", "speedup", "overhead", "prefill", "speedup", "overhead"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["method"]),
            "" if row["keep"] is None else str(row["keep"]),
            str(row["visual_tokens_after"]),
            f"{row['ttft_ms']:,.1f}",
            f"{row['speedup']:.2f}",
            f"{row['overhead']:.3f}",
            f"{row['prefill_ms']:,.1f}",
            f"{row['prefill_speedup']:.2f}",
            f"{row['prefill_overhead']:.3f}",
        )
    return table
