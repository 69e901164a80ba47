"""Points that each stand for themselves, such as the answers of several methods to one question."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vtprune.bench.plot import COLOURS, SHAPES
from vtprune.evals.pages.sheet import GREY, Sheet, new_sheet
from vtprune.evals.pages.tips import Tip
from vtprune.evals.pages.words import short

_MARGIN = 0.12
_LEAST = 0.2
"""Of the largest value: what an axis shows at least."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a scatter plot.

    Args:
        label: What it is.
        x: Place across.
        y: Place up.
        unpruned: Whether it is what the others are compared with.
        tip: What is told, beside its place, when it is pointed at or reached by the keyboard; lines.
    """

    label: str
    x: float
    y: float
    unpruned: bool = False
    tip: str = ""


def draw_scatter(points: Sequence[Point], x_label: str, y_label: str, key: str, y_most: float | None = None) -> str:
    """Draw points, each of a colour and shape of its own; lines across and up lead to the unpruned ones.

    Args:
        points: At least one. Points keep their look as long as their order stays.
        x_label: Of the axis across.
        y_label: Of the axis up.
        key: What the ids within the picture begin with, so that several may stand on one page.
        y_most: The largest value that there can be on the axis up; None: there is no largest one.

    Returns:
        An `<svg>` element with letters as text, a description, and what each point is.

    Raises:
        ValueError: There are no points.
    """
    if not points:
        raise ValueError("points must be at least one, got none.")
    with new_sheet() as sheet:
        styles = _styles(points)
        for point, style in zip(points, styles, strict=True):
            place = f"{x_label}: {short(point.x)}", f"{y_label}: {short(point.y)}"
            _draw(sheet, point, style, Tip(point.label, (*place, *point.tip.splitlines()), style["color"]))
        low, high = _limits([point.y for point in points])
        beyond = high if y_most is None else min(high, y_most + _MARGIN / 2 * (y_most - low))
        sheet.axes.set_xlim(*_limits([point.x for point in points]))
        sheet.axes.set_ylim(low, beyond)
        sheet.axes.set_xlabel(x_label)
        sheet.axes.set_ylabel(y_label)
        said = "; ".join(f"{point.label}: {short(point.x)}, {short(point.y)}" for point in points)
        return sheet.finish(key, f"{y_label} against {x_label}", f"{x_label}, {y_label}. {said}.")


def _styles(points: Sequence[Point]) -> list[dict[str, Any]]:
    styles: list[dict[str, Any]] = []
    number = 0
    for point in points:
        if point.unpruned:
            styles.append({"color": GREY, "marker": "o", "markerfacecolor": "white", "markersize": 6})
        else:
            styles.append(
                {"color": COLOURS[number % len(COLOURS)], "marker": SHAPES[number % len(SHAPES)], "markersize": 6.5}
            )
            number += 1
    return styles


def _draw(sheet: Sheet, point: Point, style: dict[str, Any], tip: Tip) -> None:
    from matplotlib.lines import Line2D

    if point.unpruned:
        for draw, value in ((sheet.axes.axvline, point.x), (sheet.axes.axhline, point.y)):
            draw(value, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
    (mark,) = sheet.axes.plot(point.x, point.y, linestyle="none", zorder=3, **style)
    sheet.tell(mark, tip)
    sheet.explain(point.label, Line2D([], [], linestyle="none", **style))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """A little more than what is there, and 0 where it is near; differences of a hundredth do not fill the picture."""
    low, high = min(values), max(values)
    room = max(_MARGIN * (high - low), (_LEAST * abs(high) - (high - low)) / 2) or 1
    return (0 if 0 <= low < 0.4 * high else low - room), high + room
