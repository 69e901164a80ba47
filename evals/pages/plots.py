"""The plots of an evaluation: quality against visual tokens, prefill FLOPs or time to first token.

Column width, letters of 8 pt. Colours are Okabe and Ito's, which people with any kind of colour vision tell apart;
shapes and strokes tell lines apart in print. A filled mark is on the Pareto front, a hollow one is not.
"""

from __future__ import annotations

import io
import itertools
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

from vtprune.bench.plot import COLOURS, SHAPES
from vtprune.evals.pages.lines import Dot, Line, Panel, View
from vtprune.evals.pages.svg import finish_svg
from vtprune.evals.pages.words import percent, percents

WIDTH, HEIGHT = 3.4, 2.5
"""Inches, the height without the legend."""

LETTERS = 8
"""Points."""

NAMES: dict[View, str] = {"tokens": "visual tokens", "flops": "prefill FLOPs", "ttft": "time to first token"}
_STROKES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
_GREY, _BAND = "0.35", "0.88"
_TICKS = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)
_LONGEST_LABEL = 44
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vtprune",  # the same ids every time
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": LETTERS,
    "axes.unicode_minus": True,
    "axes.linewidth": 0.6,
}


def draw_panel(panel: Panel, view: View, key: str) -> str:
    """Draw quality against one cost.

    Args:
        panel: What is drawn.
        view: The cost.
        key: What the ids within the picture begin with, so that several may stand on one page.

    Returns:
        An `<svg>` element with letters as text, a title and a description.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's own fonts have them
        handles, labels = [], []
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        unpruned = list({line.dots[0].quality: line for line in reversed(panel.unpruned)}.values())[::-1]
        for number, line in enumerate(unpruned):
            labels.append(_label(line, unpruned))
            handles.append(_unpruned(axes, line.dots[0], view, number))
        styles = _styles(panel.lines)
        for number, (line, style) in enumerate(zip(panel.lines, styles, strict=True)):
            aside = 0.0 if view == "ttft" else _aside(number, len(panel.lines))
            _draw_line(axes, line, view, style, aside)
            labels.append(_label(line, panel.lines))
            handles.append(_handle(style))
        if panel.lines:
            labels += ["on the Pareto front", "not on it"]
            handles += [_mark(_GREY), _mark("white")]
        _finish_axes(axes, panel, view)
        columns = _columns(labels)
        figure.set_figheight(HEIGHT + (1.35 * LETTERS * max(map(_lines_of_text, columns)) + 6) / 72)
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=len(columns),
            frameon=False,
            handlelength=2.4,
            columnspacing=1.2,
            labelspacing=0.25,
            borderpad=0.1,
        )
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    title = f"Quality against {NAMES[view]}"
    return finish_svg(file.getvalue(), key, title, _in_words(panel, view))


def _label(line: Line, lines: Sequence[Line]) -> str:
    """The method, with its run where there are several."""
    several = len({other.run for other in lines}) > 1
    text = f"{line.run}: {line.method}" if several and line.run else line.method
    return "\n".join(textwrap.wrap(text, _LONGEST_LABEL)) or text


def _columns(labels: Sequence[str]) -> list[list[str]]:
    """The legend's columns, as many as there is room for."""
    for count in range(min(3, len(labels)), 1, -1):
        rows, longer = divmod(len(labels), count)
        starts = [column * rows + min(column, longer) for column in range(count + 1)]
        columns = [list(labels[start:end]) for start, end in itertools.pairwise(starts)]
        widest = [max(len(part) for label in column for part in label.split("\n")) for column in columns]
        if LETTERS * sum(0.6 * letters + 4.3 for letters in widest) <= 72 * WIDTH:
            return columns
    return [list(labels)]


def _lines_of_text(labels: Sequence[str]) -> int:
    return sum(label.count("\n") + 1 for label in labels)


def _styles(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Colours tell methods apart (runs, if there is one method), strokes runs (methods, if there is one run)."""
    methods = list(dict.fromkeys(line.method for line in lines))
    runs = list(dict.fromkeys(line.run for line in lines))
    styles = []
    for line in lines:
        method, run = methods.index(line.method), runs.index(line.run)
        styles.append(
            {
                "color": COLOURS[(method if len(methods) > 1 else run) % len(COLOURS)],
                "marker": SHAPES[(method + 3 * run) % len(SHAPES)],
                "linestyle": _STROKES[(run if len(runs) > 1 else method) % len(_STROKES)],
            }
        )
    return styles


def _aside(number: int, lines: int) -> float:
    """How many points to the right a line is drawn: dots of one budget stand side by side."""
    return (number - (lines - 1) / 2) * min(3.5, 24 / lines)


def _unpruned(axes: Any, dot: Dot, view: View, number: int) -> Any:
    """A line across with its interval, as others are compared with it, and a dot where it stands."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    style: dict[str, Any] = {"color": _GREY, "linestyle": _STROKES[number % len(_STROKES)], "linewidth": 1}
    if dot.interval is not None:
        axes.axhspan(*(100 * end for end in dot.interval), color=_BAND, linewidth=0, zorder=0)
    axes.axhline(100 * dot.quality, zorder=1, **style)
    face = _GREY if view in dot.front else "white"
    axes.plot(100, 100 * dot.quality, marker=".", markersize=8, color=_GREY, markerfacecolor=face, zorder=2)
    line = Line2D([], [], marker=".", markersize=8, **style)
    return (Patch(color=_BAND, linewidth=0), line) if dot.interval is not None else line


def _draw_line(axes: Any, line: Line, view: View, style: dict[str, Any], aside: float) -> None:
    from matplotlib.transforms import ScaledTranslation

    dots = [(dot.costs[view], dot) for dot in line.dots]
    known = [(cost, dot) for cost, dot in dots if cost is not None]
    move = axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
    across, up = [100 * cost for cost, _ in known], [100 * dot.quality for _, dot in known]
    axes.update_datalim(list(zip(across, up, strict=True)))
    axes.plot(across, up, color=style["color"], linestyle=style["linestyle"], linewidth=1.1, transform=move, zorder=3)
    for cost, dot in known:
        low, high = dot.interval or (dot.quality, dot.quality)
        axes.errorbar(
            100 * cost,
            100 * dot.quality,
            yerr=[[100 * (dot.quality - low)], [100 * (high - dot.quality)]] if dot.interval else None,
            color=style["color"],
            marker=style["marker"],
            markersize=5,
            markeredgewidth=1,
            markerfacecolor=style["color"] if view in dot.front else "white",
            elinewidth=0.8,
            capsize=1.5,
            transform=move,
            zorder=4,
        )


def _handle(style: dict[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linewidth=1.1, markersize=5, markerfacecolor=style["color"], **style)


def _mark(face: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=_GREY, marker="o", markersize=5, markerfacecolor=face, linestyle="none")


def _finish_axes(axes: Any, panel: Panel, view: View) -> None:
    dots = [dot for line in (*panel.lines, *panel.unpruned) for dot in line.dots]
    ends = [100 * end for dot in dots for end in (dot.interval or (dot.quality, dot.quality))]
    low, high = min(ends), max(ends)
    margin = max(0.06 * (high - low), (6 - (high - low)) / 2, 0.5)
    axes.set_ylim(max(low - margin, -3), min(high + margin, 103))
    costs = [cost for dot in dots if (cost := dot.costs[view]) is not None]
    if view == "tokens":
        # Roots of shares stand about as far apart as budgets are chosen, and 0 has a place.
        axes.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))
        axes.set_xlim(0, 100 * 1.1 * max(1, *costs))
        axes.set_xticks([100 * tick for tick in _TICKS if tick in (0, 0.1, 0.25, 0.5, 1)])
        axes.minorticks_off()
    else:
        left, right = min(costs), max(1, *costs)
        room = max(0.08 * (right - left), 0.03)
        axes.set_xlim(100 * max(left - room, 0), 100 * (right + room))
    axes.axvline(100, color="0.75", linewidth=0.6, zorder=0)
    known = panel.costs[view]
    axes.set_xlabel(f"{NAMES[view]}, %" + (f" of {known}" if known else " of unpruned"))
    axes.set_ylabel(panel.quality)
    axes.tick_params(width=0.6, length=2.5)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _in_words(panel: Panel, view: View) -> str:
    """The plot for people who do not see it."""
    said = [f"{panel.quality}, 95 % intervals."]
    for line in (*panel.unpruned, *panel.lines):
        values = [
            f"{percent(dot.quality)}{f' ({percents(dot.interval)})' if dot.interval else ''} at {percent(cost, 0)}"
            for dot in line.dots
            if (cost := dot.costs[view]) is not None
        ]
        said.append(f"{f'{line.run}, ' if line.run else ''}{line.method}: {'; '.join(values) or 'not measured'}.")
    return " ".join(said)
