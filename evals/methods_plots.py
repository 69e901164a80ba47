"""The plots of docs/methods.md: quality against visual tokens kept, some methods at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vtprune.bench.plot import COLOURS
from vtprune.evals.methods_data import Point, Table

GREY = "0.55"
SHAPES = ("s", "o", "D", "^", "v", "P", "X")  # each fits into the one before
TICKS = (0, 0.1, 0.25, 0.5, 1)


View = Literal["tokens", "flops", "cache", "turns"]
AXES = {
    "tokens": "visual tokens seen, %",
    "flops": "prefill FLOPs, %",
    "cache": "KV cache, %",
    "turns": "KV cache, %, next turn",
}


def draw_group(
    methods: Sequence[str], tables: Sequence[Table], path: Path, *, views: Sequence[View] = ("tokens",)
) -> None:
    """Draw some methods to a PNG file, a panel per table that has one of them.

    Args:
        methods: Their names.
        tables: What is known of them.
        path: The file.
        views: What quality is drawn against, a row of panels for each.
    """
    from matplotlib.figure import Figure

    shown = [table for table in tables if any(table.points.get(method) for method in methods)] or list(tables[:1])
    grid = [[(table, view) for table in shown] for view in views]
    if len(shown) == 1:
        grid = [[view for row in grid for view in row]]  # side by side
    width = max(2.75 * len(grid[0]), 7)
    figure = Figure(figsize=(width, 0.75 + 3 * len(grid)), dpi=130, layout="constrained")
    panels = figure.subplots(len(grid), len(grid[0]), sharey=True, squeeze=False)
    for axes, (table, view) in zip(panels.flat, (one for row in grid for one in row), strict=True):
        axes.set_visible(view != "turns" or table.turns is not None)
        _panel(axes, methods, table, view)
    for axes, (table, _) in zip(panels[0], grid[0], strict=True):
        axes.set_title(table.name, loc="left", fontsize=10)
    for row in panels:
        row[0].set_ylabel("right answers, %")
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [x for x in dict.fromkeys(("unpruned", "blank", "random", *methods)) if x in handles]
    lines = -(-len(order) // int(width / 1.45))
    columns = -(-len(order) // lines)
    figure.legend([handles[x] for x in order], order, loc="outside lower center", ncols=columns, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _panel(axes: Any, methods: Sequence[str], table: Table, view: View) -> None:
    unpruned, blank = (table.turn, table.blank_turn) if view == "turns" else (table.unpruned, table.blank)
    axes.axhline(100 * unpruned, color=GREY, linewidth=1, label="unpruned")
    axes.axhline(100 * blank, color=GREY, linewidth=1, linestyle=":", label="blank")
    style = {"color": GREY, "linestyle": "--", "linewidth": 1.4, "marker": ".", "zorder": 2}
    chance = "place=cache" if view in ("cache", "turns") else ""  # entries, or tokens, that leave at random
    drawn = [dataclasses.replace(x, parameters="") for x in table.points.get("random", []) if x.parameters == chance]
    _line(axes, drawn, view, label="random", **style)
    for number, method in enumerate(x for x in methods if x != "random"):
        # Of lines that lie on one another all show.
        size = max(8.5 - 1.4 * number, 3)
        style = {"color": COLOURS[number], "marker": SHAPES[number], "linewidth": size / 4, "markersize": size}
        _line(axes, table.points.get(method, []), view, label=method, zorder=3 + number, **style)
    axes.set_ylim(10, 101)
    axes.set_xlabel(AXES[view])
    if view != "tokens":
        axes.set_xlim(right=102)
    else:
        # Roots of shares stand about as far apart as budgets are chosen, and 0 has a place.
        axes.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))
        axes.set_xlim(0, 1.09)
        axes.set_xticks(TICKS, [f"{100 * x:g}" for x in TICKS])
    axes.tick_params(labelsize=9)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _line(axes: Any, points: Sequence[Point], view: View, **style: Any) -> None:
    """Budgets of a method, joined. Points with parameters are left out, but of a method without `keep`, apart."""
    if view == "turns":
        points = [dataclasses.replace(x, right=x.turn) for x in points if x.turn is not None]
    name = "cache" if view == "turns" else view
    shown = [x for x in points if getattr(x, name) is not None and (x.keep is None or not x.parameters)]
    shown.sort(key=lambda x: (getattr(x, name), x.right))
    if shown:
        across = [(1 if view == "tokens" else 100) * getattr(x, name) for x in shown]
        if shown[0].keep is None:
            style["linestyle"] = ""
        axes.plot(across, [100 * x.right for x in shown], clip_on=False, **style)
