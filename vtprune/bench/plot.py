"""The plot of a sweep: prefill time against visual tokens kept."""

from __future__ import annotations

import statistics
import textwrap
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; shapes tell the rest, also in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def check_matplotlib() -> None:
    """Say so before anything is measured if the plot could not be drawn.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "matplotlib is missing, which draws the plot of a sweep: pip install 'vtprune[eval]'."
        ) from None


def draw_sweep(documents: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the points of a sweep to a PNG file.

    Args:
        documents: Points as in the sweep's JSON file.
        path: The file.
        title: What stands above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), dpi=160, layout="constrained")
    axes = figure.subplots()
    _ideal(axes, documents)
    methods = list(dict.fromkeys(x["method"] for x in documents))
    step = 0.008 * documents[0]["visual_tokens_before"]
    for number, method in enumerate(methods):
        aside = (number - (len(methods) - 1) / 2) * step  # methods with one budget stand side by side
        own = sorted((x for x in documents if x["method"] == method), key=lambda x: x["visual_tokens_after"])
        times = [x["prefill"]["method"] for x in own]
        medians = [t["median"] for t in times]
        bars = [[t["median"] - t["q1"] for t in times], [t["q3"] - t["median"] for t in times]]
        axes.errorbar(
            [x["visual_tokens_after"] + aside for x in own],
            medians,
            yerr=bars,
            fmt=SHAPES[number % len(SHAPES)],
            color=COLOURS[number % len(COLOURS)],
            markersize=6,
            markerfacecolor="white" if number >= len(COLOURS) else None,
            capsize=3,
            linewidth=1.2,
            label=method,
        )
    axes.set_xlabel("visual tokens after the last place")
    axes.set_ylabel("prefill of the language model, ms")
    axes.set_xlim(left=-0.05 * documents[0]["visual_tokens_before"])
    axes.set_ylim(bottom=0)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("\n".join(textwrap.wrap(title, 100)), loc="left", fontsize=8)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    figure.savefig(path)


def _ideal(axes: Any, documents: list[dict[str, Any]]) -> None:
    """The untouched model, and the line of the ideals that are given their tokens at the door.

    Methods between decoder layers have an ideal each, above that line: a short stroke under their point.
    """
    baseline = [x["prefill"]["baseline"]["median"] for x in documents]
    tokens = documents[0]["visual_tokens_before"]
    middle = statistics.median(baseline)
    at_door: dict[int, list[float]] = {tokens: [middle]}
    for x in documents:
        time, kept = x["prefill"]["ideal"]["median"], x["visual_tokens_after"]
        if len(set(x["slots_per_layer"])) == 1:
            at_door.setdefault(kept, []).append(time)
        else:
            axes.plot(kept, time, marker="_", markersize=14, color="0.35", linestyle="none")
    kept_counts = sorted(at_door)
    line = [statistics.median(at_door[kept]) for kept in kept_counts]
    axes.plot(kept_counts, line, color="0.35", linewidth=1.2, linestyle="--", zorder=1)
    axes.plot([], [], color="0.35", linestyle="--", marker="_", markersize=10, label="ideal (line or stroke)")
    style = {"marker": "o", "markersize": 9, "color": "0.35", "fillstyle": "none", "linestyle": "none"}
    axes.plot(tokens, middle, label="untouched model", **style)
