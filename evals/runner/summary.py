"""From the records of a run to its figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics import Metric
from vtprune.evals.pages.pareto import pareto
from vtprune.evals.runner.configurations import Configuration
from vtprune.evals.runner.records import Record
from vtprune.evals.statistics import mean_interval, paired_interval

_MOST_ERRORS = 20


def summarise(
    records: Sequence[Record],
    samples: Sequence[Sample],
    metric: Metric,
    configurations: Sequence[Configuration],
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of all configurations; the part of `summary.json` that follows from the answers.

    A question counts where it was answered. Differences to the unpruned model are of the questions that both answered.

    Args:
        records: Of all questions under all configurations, or of some of the questions.
        samples: The questions.
        metric: How answers were judged.
        configurations: What was asked under; the first one is the unpruned model.
        seed: Of the bootstrap.
    """
    of = {one.name: {r.index: r for r in records if r.configuration == one.name} for one in configurations}
    unpruned = of[configurations[0].name]
    found = [_figures(one, of[one.name], unpruned, samples, metric, seed) for one in configurations]
    _mark_front(found)
    failed = {record.index for record in records if record.error is not None}
    errors = [
        {"id": record.id, "configuration": record.configuration, "error": record.error}
        for record in records
        if record.error is not None
    ]
    asked = {record.index for record in records}
    return {"n": len(asked), "failed": len(failed), "configurations": found, "errors": errors[:_MOST_ERRORS]}


def _figures(
    one: Configuration,
    mine: dict[int, Record],
    unpruned: dict[int, Record],
    samples: Sequence[Sample],
    metric: Metric,
    seed: int,
) -> dict[str, Any]:
    answered = [record for record in mine.values() if record.error is None]
    judged = [record for record in answered if record.score is not None]
    figures: dict[str, Any] = {
        "name": one.name,
        "method": one.method,
        "keep": one.keep,
        "answered": len(answered),
        "failed": len(mine) - len(answered),
        **_quality(judged, unpruned, one.method is None, seed),
    }
    kinds = sorted({record.kind for record in judged if record.kind})
    figures["kinds"] = {
        kind: _quality([record for record in judged if record.kind == kind], unpruned, one.method is None, seed)
        for kind in kinds
    }
    figures["by_kind"] = {kind: figures["kinds"][kind]["accuracy"] for kind in kinds}
    figures["details"] = {}
    if metric.details is not None and judged:
        said = [record.answer or "" for record in judged]
        figures["details"] = dict(metric.details([samples[record.index] for record in judged], said))
    figures["fidelity"] = None if one.method is None else _fidelity(answered, seed)
    return figures | _costs(answered, unpruned)


def _quality(judged: Sequence[Record], unpruned: dict[int, Record], is_unpruned: bool, seed: int) -> dict[str, Any]:
    if not judged:
        return {"n": 0, "accuracy": None, "interval": None, "against_unpruned": None}
    scores = [record.score or 0.0 for record in judged]
    against = None
    if not is_unpruned:
        both = [(record, unpruned[record.index]) for record in judged if unpruned[record.index].score is not None]
        if both:
            mine, other = ([one.score or 0.0 for one in side] for side in zip(*both, strict=True))
            found = paired_interval(mine, other, [one.group for one, _ in both], seed=seed)
            difference = math.fsum(mine) / len(both) - math.fsum(other) / len(both)
            against = {"difference": difference, "interval": list(found[1:]) if found else None, "n": len(both)}
    return {
        "n": len(judged),
        "accuracy": math.fsum(scores) / len(scores),
        "interval": _interval(scores, judged, seed),
        "against_unpruned": against,
    }


def _interval(values: Sequence[float], records: Sequence[Record], seed: int) -> list[float] | None:
    found = mean_interval(values, [record.group for record in records], seed=seed)
    return None if found is None else list(found)


def _fidelity(answered: Sequence[Record], seed: int) -> dict[str, Any] | None:
    known = [record for record in answered if record.agrees is not None]
    if not known:
        return None
    agrees = [float(bool(record.agrees)) for record in known]
    return {
        "agreement": math.fsum(agrees) / len(agrees),
        "agreement_interval": _interval(agrees, known, seed),
        "kl": _mean([record.kl for record in known]),
        "logit_error": _mean([record.logit_error for record in known]),
        "n": len(known),
    }


def _costs(answered: Sequence[Record], unpruned: dict[int, Record]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, field in (("visual_tokens", "visual_tokens"), ("prefill_flops", "flops"), ("kv_bytes", "kv_bytes")):
        after = _mean([getattr(record, f"{field}_after") for record in answered])
        before = _mean([getattr(record, f"{field}_before") for record in answered])
        figures[f"{name}_mean"] = after
        figures[f"{name}_before_mean"] = before
        figures[f"{name}_share"] = after / before if after is not None and before else None
    first = [record.ttft_ms for record in answered if record.ttft_ms is not None]
    pairs = [(record.ttft_ms, unpruned[record.index].ttft_ms) for record in answered]
    ratios = [mine / other for mine, other in pairs if mine and other]
    figures["ttft_ms"] = statistics.median(first) if first else None
    figures["ttft_interval"] = _quartiles(first)
    figures["ttft_share"] = statistics.median(ratios) if ratios else None
    seconds = math.fsum(record.time_ms or 0.0 for record in answered) / 1000
    tokens = sum(record.new_tokens or 0 for record in answered)
    figures["seconds_per_question"] = seconds / len(answered) if answered else None
    figures["tokens_per_second"] = tokens / seconds if seconds else None
    return figures


def _quartiles(values: Sequence[float]) -> list[float] | None:
    if len(values) < 2:
        return None
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


_COSTS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "tokens": lambda figures: figures["visual_tokens_mean"],
    "flops": lambda figures: figures["prefill_flops_mean"],
    "ttft": lambda figures: figures["ttft_share"],
}


def _mark_front(found: Sequence[dict[str, Any]]) -> None:
    """Which configurations no other one beats in cost and quality at once."""
    for figures in found:
        figures["pareto"] = {}
    for name, cost in _COSTS.items():
        front = pareto([(cost(figures), quality(figures)) for figures in found])
        for figures, on_front in zip(found, front, strict=True):
            figures["pareto"][name] = on_front


def quality(figures: dict[str, Any]) -> float | None:
    """Accuracy, or where no right answers are known, agreement with the unpruned model (1 for itself)."""
    accuracy: float | None = figures["accuracy"]
    if accuracy is not None:
        return accuracy
    if figures["method"] is None:
        return 1.0 if figures["answered"] else None
    return figures["fidelity"]["agreement"] if figures["fidelity"] else None
