"""What a dot of a plot tells when it is pointed at, or reached by the keyboard: a box within the picture.

Nothing but SVG and a few rules of style. A dot is reached within a cell around it, of all points that are nearer to it
than to any other dot, so that dots which stand close together can all be pointed at.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, SubElement

LETTERS = 7.5
RULES = """
.vtprune-dot { outline: none; }
.vtprune-dot .told { visibility: hidden; pointer-events: none; }
.vtprune-dot:hover .told, .vtprune-dot:focus .told { visibility: visible; }
svg:has(.vtprune-dot:hover) .vtprune-dot:not(:hover) .told { visibility: hidden; }
@media print { .vtprune-dot .told, .vtprune-dot:focus .told { visibility: hidden; } }
"""
_REACH = 11.0  # points around a dot
_CORNERS = 24
_RING, _AWAY = 5.5, 9.0
_PADDING, _STRIPE, _LINE = 5.0, 2.5, 1.4 * LETTERS
_LONGEST = 40  # letters
_PAPER, _INK = "#1c2024", "#ffffff"

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Tip:
    """What is told of a dot.

    Args:
        title: What the dot is.
        lines: What is known of it.
        colour: The dot's.
    """

    title: str
    lines: tuple[str, ...]
    colour: str

    @property
    def aloud(self) -> str:
        """All of it in one line."""
        return ": ".join(filter(None, (self.title, "; ".join(self.lines))))


def draw_tips(dots: Sequence[tuple[Point, Tip]], size: Point) -> Element:
    """A layer for the top of a picture, with a cell and a hidden box for each dot.

    Args:
        dots: Where each stands, and what is told of it.
        size: Width and height of the picture, which no box leaves.
    """
    layer = Element("g")
    # Of dots at one place each has a part of the cell.
    centres = [(x + number * 1e-4, y) for number, ((x, y), _) in enumerate(dots)]
    for centre, (place, tip) in zip(centres, dots, strict=True):
        dot = SubElement(layer, "g", {"class": "vtprune-dot", "tabindex": "0", "role": "img", "aria-label": tip.aloud})
        corners = _cell(centre, [other for other in centres if other is not centre])
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in corners)
        SubElement(dot, "polygon", {"points": points, "fill": "none", "pointer-events": "all"})
        told = SubElement(dot, "g", {"class": "told", "aria-hidden": "true"})
        ring = {"cx": f"{place[0]:.2f}", "cy": f"{place[1]:.2f}", "r": str(_RING)}
        SubElement(told, "circle", {**ring, "fill": "none", "stroke": tip.colour, "stroke-width": "1.5"})
        _draw_box(told, place, tip, size)
    return layer


def _cell(centre: Point, others: Iterable[Point]) -> list[Point]:
    """A circle of corners, without what is nearer to another dot."""
    turns = (2 * math.pi * corner / _CORNERS for corner in range(_CORNERS))
    corners = [(centre[0] + _REACH * math.cos(turn), centre[1] + _REACH * math.sin(turn)) for turn in turns]
    for other in others:
        if math.dist(centre, other) < 2 * _REACH:
            corners = _nearer(corners, centre, other)
    return corners


def _nearer(corners: Sequence[Point], centre: Point, other: Point) -> list[Point]:
    """The part of a convex polygon that is nearer to one point than to another one."""

    def beyond(point: Point) -> float:
        return math.dist(point, centre) ** 2 - math.dist(point, other) ** 2

    kept = []
    for one, following in zip(corners, [*corners[1:], *corners[:1]], strict=True):
        here, there = beyond(one), beyond(following)
        if here <= 0:
            kept.append(one)
        if (here < 0) != (there < 0) and here != there:
            share = here / (here - there)
            kept.append((one[0] + share * (following[0] - one[0]), one[1] + share * (following[1] - one[1])))
    return kept


def _draw_box(told: Element, place: Point, tip: Tip, size: Point) -> None:
    lines = [(line, True) for line in textwrap.wrap(tip.title, _LONGEST) or [tip.title]]
    lines += [(part, False) for line in tip.lines for part in textwrap.wrap(line, _LONGEST)]
    width = min(max(_width(*line) for line in lines) + _STRIPE + 2 * _PADDING, size[0] - 2)
    height = len(lines) * _LINE + 2 * _PADDING
    left = min(max(place[0] - width / 2, 1), size[0] - width - 1)
    top = place[1] - _AWAY - height
    if top < 1:
        top = max(min(place[1] + _AWAY, size[1] - height - 1), 1)
    box = {"x": f"{left:.2f}", "y": f"{top:.2f}", "height": f"{height:.2f}"}
    SubElement(told, "rect", {**box, "width": f"{width:.2f}", "rx": "2.5", "fill": _PAPER})
    SubElement(told, "rect", {**box, "width": str(_STRIPE), "rx": "1.2", "fill": tip.colour})
    for number, (line, strong) in enumerate(lines):
        where = {"x": f"{left + _STRIPE + _PADDING:.2f}", "y": f"{top + _PADDING + (number + 0.76) * _LINE:.2f}"}
        weight = "bold" if strong else "normal"
        text = SubElement(
            told, "text", {**where, "style": f"font-size: {LETTERS}px; font-weight: {weight}; fill: {_INK}"}
        )
        text.text = line


def _width(line: str, strong: bool) -> float:
    """A little more than in any common font without serifs."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=LETTERS, weight="bold" if strong else "normal")
    return 0.95 * text_to_path.get_text_width_height_descent(line, font, False)[0]
