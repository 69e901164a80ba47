"""Boxes stay within the picture, and of two dots the nearer one is pointed at."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.evals.pages.tips import Tip, draw_tips

WIDTH, HEIGHT = 245.0, 200.0
TIP = Tip("divprune+fastv:layer=2,keep=0.5+a_method_with_a_very_long_name", ("right answers: 91.0 %",) * 4, "#0072B2")
places = st.lists(st.tuples(st.integers(0, int(WIDTH)), st.integers(0, int(HEIGHT))), min_size=1, max_size=8)


def cells(layer):
    """The corners of each dot's cell."""
    return [
        [tuple(map(float, corner.split(","))) for corner in dot.find("polygon").get("points").split()] for dot in layer
    ]


def holds(corners, point):
    """Whether a convex polygon, given clockwise on a screen, holds a point."""
    pairs = zip(corners, [*corners[1:], *corners[:1]], strict=True)
    return all((b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0]) > -0.5 for a, b in pairs)


@settings(deadline=None)
@given(places)
def test_boxes_stay_within(where):
    layer = draw_tips([(place, TIP) for place in where], (WIDTH, HEIGHT))
    for box in layer.iter("rect"):
        x, y, width, height = (float(box.get(name)) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + width <= WIDTH
        assert 0 <= y <= y + height <= HEIGHT


@settings(deadline=None)
@given(places, st.tuples(st.integers(0, int(WIDTH)), st.integers(0, int(HEIGHT))))
def test_the_nearest_dot_is_pointed_at(where, pointer):
    where = list(dict.fromkeys(where))
    found = [holds(corners, pointer) for corners in cells(draw_tips([(p, TIP) for p in where], (WIDTH, HEIGHT)))]
    distances = [math.dist(place, pointer) for place in where]
    nearest = min(distances)
    for held, distance in zip(found, distances, strict=True):
        if distance > nearest + 0.5 or distance > 11.5:
            assert not held
        elif distance == nearest and sorted(distances)[:2] != [nearest, nearest] and distance < 9:
            assert held


def test_dots_at_one_place_share_it():
    first, second = cells(draw_tips([((50.0, 50.0), TIP), ((50.0, 50.0), TIP)], (WIDTH, HEIGHT)))
    assert holds(first, (45, 50))
    assert not holds(second, (45, 50))
    assert holds(second, (55, 50))
    assert not holds(first, (55, 50))


def test_texts_are_told_and_escaped():
    tip = Tip("<b>", ("a & b",), "#000000")
    (dot,) = draw_tips([((50.0, 50.0), tip)], (WIDTH, HEIGHT))
    assert dot.get("aria-label") == "<b>: a & b"
    assert [text.text for text in dot.iter("text")] == ["<b>", "a & b"]
    assert "<b>" not in ElementTree.tostring(dot, encoding="unicode")
