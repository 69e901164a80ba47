"""What came of a run, a sentence for each method."""

from __future__ import annotations

from typing import Any

from vtprune.evals.pages.runs import UNPRUNED, Run
from vtprune.evals.pages.words import percent, percents, point_range, points, tokens_in_words
from vtprune.evals.runner.summary import quality

_AIM = 0.25
_NOTHING_LEFT_OUT = 0.995


def headlines(run: Run) -> list[str]:
    """A sentence for each method, at its budget nearest to a quarter of what it saves on; the best method first."""
    nearest: dict[str, dict[str, Any]] = {}
    for one in run.configurations:
        if one["name"] == UNPRUNED or one["visual_tokens_share"] is None:
            continue
        best = nearest.get(one["method"])
        if best is None or _distance(one) < _distance(best):
            nearest[one["method"]] = one
    ranked = sorted(nearest.values(), key=lambda one: -(quality(one) or 0))
    return [said for one in ranked if (said := _sentence(run, one))]


def _distance(one: dict[str, Any]) -> float:
    return abs(_spent(one)[0] - _AIM)


def _sentence(run: Run, one: dict[str, Any]) -> str:
    told = _judged(run, one) if run.judged else _agreement(one)
    if not told:
        return ""
    first = "" if one["ttft_share"] is None else f"; first token after {percent(one['ttft_share'], 0)} of the time"
    return f"{one['method']} with {_spent(one)[1]} {told}{first}."


def _spent(one: dict[str, Any]) -> tuple[float, str]:
    """What is left of what a method saves on: visual tokens, or else the cache or FLOPs; as a share, and in words."""
    share = one["visual_tokens_share"]
    if share < _NOTHING_LEFT_OUT:
        return share, tokens_in_words(share)
    for name, what in (("kv_bytes_share", "KV cache"), ("prefill_flops_share", "prefill FLOPs")):
        if one[name] is not None and one[name] < _NOTHING_LEFT_OUT:
            return one[name], f"{percent(one[name], 0)} of the {what}"
    return share, "all visual tokens"


def _judged(run: Run, one: dict[str, Any]) -> str:
    unpruned = run.configurations[0]["accuracy"]
    if one["accuracy"] is None:
        return ""
    verb = f"answers {percent(one['accuracy'])} right" if run.right_or_wrong else f"scores {percent(one['accuracy'])}"
    against = one["against_unpruned"]
    if against is None:
        return f"{verb} (unpruned {percent(unpruned)})"
    interval = f", 95 % interval {point_range(against['interval'])}" if against["interval"] else ""
    return f"{verb} (unpruned {percent(unpruned)}; difference {points(against['difference'])} points{interval})"


def _agreement(one: dict[str, Any]) -> str:
    fidelity = one["fidelity"]
    if fidelity is None:
        return ""
    interval = fidelity["agreement_interval"]
    sure = f" (95 % interval {percents(interval)})" if interval else ""
    return f"answers {percent(fidelity['agreement'])} of the questions as the unpruned model does{sure}"
