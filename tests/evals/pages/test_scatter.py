from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import matplotlib
import pytest

from vtprune.evals.pages.scatter import Point, draw_scatter

POINTS = [
    Point("unpruned", 256, 92, unpruned=True),
    Point("divprune:keep=0.25", 64, 91.5, tip="answer: <red>\nsame answer"),
    Point("random:keep=0.25", 64, 50),
]


def drawn(points):
    return ElementTree.fromstring(draw_scatter(points, "visual tokens", "right answers, %", "compare"))


def test_every_point_tells_what_it_is():
    root = drawn(POINTS)
    dots = [one for one in root.iter() if one.get("class") == "vtprune-dot"]
    assert [dot.get("aria-label") for dot in dots] == [
        "unpruned: visual tokens: 256; right answers, %: 92",
        "divprune:keep=0.25: visual tokens: 64; right answers, %: 91.5; answer: <red>; same answer",
        "random:keep=0.25: visual tokens: 64; right answers, %: 50",
    ]
    assert all(dot.get("tabindex") == "0" for dot in dots)
    legend = {one.text for one in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"divprune:keep=0.25", "random:keep=0.25", "visual tokens", "right answers, %"} <= legend
    assert all(one.get("id").startswith("compare-") for one in root.iter() if one.get("id"))


def test_points_differ_in_colour_and_shape():
    root = drawn([Point(f"method {number}", number, number) for number in range(6)])
    told = [one for one in root.iter() if one.get("class") == "told"]
    assert len({one[0].get("stroke") for one in told}) == 6


@pytest.mark.parametrize("points", [POINTS[:1], [Point("a", 0, 0)], [Point("a", -1, 3), Point("b", -1, 3)]])
def test_few_points_are_drawn_too(points):
    assert len([one for one in drawn(points).iter() if one.get("class") == "vtprune-dot"]) == len(points)


def test_none_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        draw_scatter([], "x", "y", "key")


def test_several_threads_draw_at_once():
    """The style of matplotlib is global: each drawing has ours, and afterwards it is what it was."""
    before = dict(matplotlib.rcParams)
    alone = draw_scatter(POINTS, "x", "y", "key")
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda _: draw_scatter(POINTS, "x", "y", "key"), range(8)))
    assert set(drawn) == {alone}
    assert dict(matplotlib.rcParams) == before
