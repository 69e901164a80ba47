"""The plots of an evaluation: quality against visual tokens, prefill FLOPs or time to first token.

A filled mark is on the Pareto front, a hollow one is not. Each dot tells method, budget, quality and cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vtprune.bench.plot import COLOURS, SHAPES
from vtprune.evals.pages.lines import Dot, Line, Panel, View
from vtprune.evals.pages.sheet import GREY, Sheet, new_sheet
from vtprune.evals.pages.tips import Tip
from vtprune.evals.pages.words import percent, percents

NAMES: dict[View, str] = {"tokens": "visual tokens", "flops": "prefill FLOPs", "ttft": "time to first token"}
_STROKES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
_BAND = "0.88"
_TICKS = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1)


def draw_panel(panel: Panel, view: View, key: str) -> str:
    """Draw quality against one cost.

    Args:
        panel: What is drawn.
        view: The cost.
        key: What the ids within the picture begin with, so that several may stand on one page.

    Returns:
        An `<svg>` element with letters as text, a description, and what each dot is.
    """
    with new_sheet() as sheet:
        unpruned = list({line.dots[0].quality: line for line in reversed(panel.unpruned)}.values())[::-1]
        for number, line in enumerate(unpruned):
            sheet.explain(_label(line, unpruned), _unpruned(sheet, line, panel, view, number))
        styles = _styles(panel.lines)
        for number, (line, style) in enumerate(zip(panel.lines, styles, strict=True)):
            aside = 0.0 if view == "ttft" else _aside(number, len(panel.lines))
            _draw_line(sheet, line, panel, view, style, aside)
            sheet.explain(_label(line, panel.lines), _handle(style))
        if panel.lines:
            sheet.explain("on the Pareto front", _mark(GREY))
            sheet.explain("not on it", _mark("white"))
        _finish_axes(sheet.axes, panel, view)
        return sheet.finish(key, f"Quality against {NAMES[view]}", _in_words(panel, view))


def _label(line: Line, lines: Sequence[Line]) -> str:
    """The method, with its run where there are several."""
    several = len({other.run for other in lines}) > 1
    return f"{line.run}: {line.method}" if several and line.run else line.method


def _tip(line: Line, dot: Dot, panel: Panel, view: View, colour: str) -> Tip:
    """What a dot tells: its place on the axes, and what it stands for."""
    spent = f" ({dot.spent[view]})" if dot.spent[view] else ""
    told = [
        f"budget: {dot.budget}" if dot.budget else "",
        f"{panel.quality}: {percent(dot.quality)}",
        f"95 % interval: {percents(dot.interval)}" if dot.interval else "",
        f"{NAMES[view]}: {percent(dot.costs[view])}{spent}",
    ]
    return Tip(_label(line, panel.lines), tuple(one for one in told if one), colour)


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


def _unpruned(sheet: Sheet, line: Line, panel: Panel, view: View, number: int) -> Any:
    """A line across with its interval, as others are compared with it, and a dot where it stands."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes, dot = sheet.axes, line.dots[0]
    style: dict[str, Any] = {"color": GREY, "linestyle": _STROKES[number % len(_STROKES)], "linewidth": 1}
    if dot.interval is not None:
        axes.axhspan(*(100 * end for end in dot.interval), color=_BAND, linewidth=0, zorder=0)
    axes.axhline(100 * dot.quality, zorder=1, **style)
    face = GREY if view in dot.front else "white"
    (mark,) = axes.plot(100, 100 * dot.quality, marker=".", markersize=8, color=GREY, markerfacecolor=face, zorder=2)
    sheet.tell(mark, _tip(line, dot, panel, view, GREY))
    handle = Line2D([], [], marker=".", markersize=8, **style)
    return (Patch(color=_BAND, linewidth=0), handle) if dot.interval is not None else handle


def _draw_line(sheet: Sheet, line: Line, panel: Panel, view: View, style: dict[str, Any], aside: float) -> None:
    from matplotlib.transforms import ScaledTranslation

    axes = sheet.axes
    dots = [(dot.costs[view], dot) for dot in line.dots]
    known = [(cost, dot) for cost, dot in dots if cost is not None]
    move = axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
    across, up = [100 * cost for cost, _ in known], [100 * dot.quality for _, dot in known]
    axes.update_datalim(list(zip(across, up, strict=True)))
    axes.plot(across, up, color=style["color"], linestyle=style["linestyle"], linewidth=1.1, transform=move, zorder=3)
    for cost, dot in known:
        low, high = dot.interval or (dot.quality, dot.quality)
        drawn = axes.errorbar(
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
        sheet.tell(drawn.lines[0], _tip(line, dot, panel, view, style["color"]))


def _handle(style: dict[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linewidth=1.1, markersize=5, markerfacecolor=style["color"], **style)


def _mark(face: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=GREY, marker="o", markersize=5, markerfacecolor=face, linestyle="none")


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
    axes.set_ylabel(f"{panel.quality}, %")


def _in_words(panel: Panel, view: View) -> str:
    """The plot for people who do not see it."""
    said = [f"{panel.quality}, %, with 95 % intervals."]
    for line in (*panel.unpruned, *panel.lines):
        values = [
            f"{percent(dot.quality)}{f' ({percents(dot.interval)})' if dot.interval else ''} at {percent(cost, 0)}"
            for dot in line.dots
            if (cost := dot.costs[view]) is not None
        ]
        said.append(f"{f'{line.run}, ' if line.run else ''}{line.method}: {'; '.join(values) or 'not measured'}.")
    return " ".join(said)
