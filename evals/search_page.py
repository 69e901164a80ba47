"""The section of docs/methods.md about chains: what `vtprune search` found at a few shares of prefill FLOPs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

INTRO = """\
Chains that `vtprune search` found among those of `evals/chains.py`, by model and share of prefill FLOPs. It
counts encoder, projector and decoder, over those of the unpruned model; a chain meets it at most. Chains were
chosen on calibration questions, by the log-likelihood of right answers, and judged on held-out ones about
other pictures, which the search never sees; what stands here in percent is about these, with intervals of 95
%. Of chains within one standard error of the best, the one with the smallest cache is shown. **One method**:
the best chain of a single method. A share that no chain reaches has the chain that needs least in its place,
in brackets."""


def is_search(document: dict[str, Any]) -> bool:
    """Whether a document is one of `vtprune search`."""
    return "search" in document


def section(documents: Sequence[dict[str, Any]], models: Sequence[str]) -> Iterator[str]:
    """Lines of the section, models in this order; none without documents."""
    ordered = sorted(documents, key=lambda x: (x["search"]["suite"] == "clips", _place(x["search"]["model"], models)))
    if not ordered:
        return
    yield "## Best chains"
    yield ""
    yield INTRO
    yield ""
    yield "| model | FLOPs | chain | needs, % | cache, % | right, % | against unpruned |"
    yield "|---|---:|---|---:|---:|---:|---:|"
    for document in ordered:
        about = document["search"]
        name = about["model"] if about["suite"] == "scenes" else f"{about['model']}, {about['suite']}"
        yield f"| {name} | 100 % | unpruned | 100 | 100 | {_right(document['unpruned'])} | |"
        for wanted, found in sorted(document["budgets"].items(), key=lambda x: -float(x[0])):
            yield from _rows(name, wanted, found)
    yield ""
    yield "How they were found:"
    yield ""
    for document in ordered:
        about = document["search"]
        yield f"- `{about['command']}`, {about['calibration']['questions']} questions to choose and"
        yield f"  {about['held_out']['questions']} to judge, by {about['metric']}, in {about['dtype']};"
        yield f"  {about['machine']}. {_counted(document)}."
    yield ""


def _rows(name: str, wanted: str, found: dict[str, Any]) -> Iterator[str]:
    head = f"{100 * float(wanted):g} %"
    if "best" in found:
        yield f"| {name} | {head} | {_chain(found['best'])} | {_figures(found['best'])} |"
        single = found.get("single")
        if single is not None and single["chain"] != found["best"]["chain"]:
            yield f"| | | one method: {_chain(single)} | {_figures(single)} |"
    elif "closest" in found:
        yield f"| {name} | {head} | not reached ({_chain(found['closest'])}) | {_figures(found['closest'])} |"
    else:
        yield f"| {name} | {head} | every chain is refused | | | | |"


def _chain(outcome: dict[str, Any]) -> str:
    return " + ".join(f"`{part}`" for part in outcome["chain"])


def _figures(outcome: dict[str, Any]) -> str:
    judged = outcome["held_out"]
    middle, low, high = (f"{100 * x:+.1f}" for x in judged["against_unpruned"])
    shares = (f"{100 * judged[name]:.0f}" for name in ("share", "kv_share"))
    return " | ".join((*shares, _right(outcome), f"{middle} ({low} to {high})"))


def _right(outcome: dict[str, Any]) -> str:
    low, high = outcome["held_out"]["interval"]
    return f"{100 * outcome['held_out']['accuracy']:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def _counted(document: dict[str, Any]) -> str:
    """How many chains met each share."""
    found = sorted(document["budgets"].items(), key=lambda x: -float(x[0]))
    counts = ", ".join(f"{x['meeting']} at {100 * float(wanted):g} %" for wanted, x in found)
    return f"Of {found[0][1]['candidates']} chains met the share: {counts}" if found else "Nothing was searched"


def _place(model: str, models: Sequence[str]) -> int:
    return models.index(model) if model in models else len(models)
