"""An outcome as a JSON document. Times are milliseconds, memory is bytes."""

from __future__ import annotations

from typing import Any

from vtprune.bench.clock import PHASES
from vtprune.bench.measuring import Measured, Outcome
from vtprune.bench.stats import Ratio


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """The figures of one method. `speedup` and `overhead` are about the time to first token.

    Every phase is an object of its own with the three arms and its own ratios; None where a phase does not run.
    """
    report = outcome.report
    document: dict[str, Any] = {
        "method": outcome.label,
        "ttft_ms": _median(outcome.method, "ttft"),
        "baseline_ttft_ms": _median(outcome.baseline, "ttft"),
        "ideal_ttft_ms": _median(outcome.ideal, "ttft"),
        "speedup": _value(outcome.speedup("ttft")),
        "overhead": _value(outcome.overhead("ttft")),
        "visual_tokens_before": report.visual_tokens_before,
        "visual_tokens_after": report.visual_tokens_after,
        "slots_per_layer": list(outcome.lengths),
    }
    for phase in PHASES:
        document[phase] = _phase(outcome, phase)
    arms = outcome.arms()
    document["flops"] = {
        "theoretical": {"baseline": report.prefill_flops_before, "method": report.prefill_flops_after},
        "executed": {name: arm.counts.flops for name, arm in arms.items()},
    }
    document["achieved_flops_per_second"] = {
        name: {p: flops_per_second(arm, p) for p in ("tower", "prefill")} for name, arm in arms.items()
    }
    document["peak_bytes"] = {name: arm.counts.peak_bytes for name, arm in arms.items()}
    document["kv_bytes"] = {name: arm.counts.kv_bytes for name, arm in arms.items()}
    for what in ("operators", "waits"):
        document[what] = {
            name: {phase: getattr(calls, what) for phase, calls in arm.counts.calls.items()}
            for name, arm in arms.items()
        }
    document["waits_at"] = outcome.method.counts.sites
    document["notes"] = list(report.notes)
    document["warnings"] = outcome.warnings()
    return document


def flops_per_second(arm: Measured, phase: str) -> float | None:
    """Executed FLOPs of a phase divided by its median time."""
    spread, flops = arm.spread(phase), arm.counts.flops.get(phase)
    return flops / spread.median * 1000 if spread and flops and spread.median > 0 else None


def _phase(outcome: Outcome, phase: str) -> dict[str, Any] | None:
    arms = {name: arm.spread(phase) for name, arm in outcome.arms().items()}
    if arms["baseline"] is None:
        return None
    document: dict[str, Any] = {name: None if x is None else x.to_dict() for name, x in arms.items()}
    for name, ratio in (("speedup", outcome.speedup(phase)), ("overhead", outcome.overhead(phase))):
        document[name] = _value(ratio)
        document[f"{name}_significant"] = None if ratio is None else ratio.significant
    return document


def _median(arm: Measured, phase: str) -> float | None:
    spread = arm.spread(phase)
    return None if spread is None else spread.median


def _value(ratio: Ratio | None) -> float | None:
    return None if ratio is None else ratio.value
