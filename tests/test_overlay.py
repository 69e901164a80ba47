"""Overlays: kept cells keep their colours, dropped ones lose them, at the right places of any shape of picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vtprune.overlay import LONGEST, draw_overlay, draw_overlays
from vtprune.report import PictureReport


def report(kept, rows=4, columns=4, owner=None, frames=1):
    return PictureReport(0, 0, (frames, rows, columns), tuple(range(rows * columns)), tuple(kept), owner)


def is_coloured(overlay, x, y):
    channels = overlay.getpixel((round(x), round(y)))
    return max(channels) - min(channels) > 60


def coloured_cells(overlay, width, height, rows=4, columns=4):
    """Cells of the upper left `width` x `height` pixels whose middle is in colour."""
    middles = [((c + 0.5) * width / columns, (r + 0.5) * height / rows) for r in range(rows) for c in range(columns)]
    return [number for number, (x, y) in enumerate(middles) if is_coloured(overlay, x, y)]


@pytest.mark.parametrize("size", [(480, 480), (1000, 500), (300, 900)])
def test_cells_stretch_with_the_picture(size):
    overlay = draw_overlay(Image.new("RGB", size, (40, 90, 250)), report([0, 5, 11]), "divprune keep=0.1875")
    assert overlay.mode == "RGB"
    assert overlay.width == max(size[0], round(size[0] * 480 / max(size)))
    assert coloured_cells(overlay, overlay.width, overlay.width * size[1] / size[0]) == [0, 5, 11]


def test_region_that_a_crop_leaves():
    """The grid covers the middle square only; what lies outside is shown as dropped."""
    overlay = draw_overlay(Image.new("RGB", (1000, 500), (40, 90, 250)), report(range(16)), region=(250, 0, 750, 500))
    assert not is_coloured(overlay, 120, 200)
    assert is_coloured(overlay, 440, 200)
    assert not is_coloured(overlay, 880, 200)


def test_region_beyond_the_picture():
    assert draw_overlay(Image.new("RGB", (100, 50), "red"), report([0]), region=(0, -25, 100, 75)).width >= 100


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (24, 24), (3000, 2000), (4096, 10)])
def test_size_lets_cells_be_seen(size):
    overlay = draw_overlay(Image.new("RGB", size), report(range(9), 24, 24))
    assert overlay.width >= 240
    assert overlay.height >= 240
    assert max(overlay.size) <= LONGEST + 100


def test_kept_stands_out_where_colour_does_not():
    """On black and on white pictures the border alone tells kept from dropped."""
    for colour in ("black", "white"):
        picture = Image.new("RGB", (480, 480), colour)
        border = (
            np.asarray(draw_overlay(picture, report([5])))[:480] != np.asarray(draw_overlay(picture, report([])))[:480]
        )
        ys, xs = np.nonzero(border.any(-1))
        assert abs(xs.min() - 120) < 6
        assert abs(xs.max() - 240) < 6
        assert abs(ys.min() - 120) < 6


def test_merged_tokens_are_shown_as_groups():
    owner = (0, 0, 2, 2, 0, 0, 2, 2, 8, 8, 10, 10, 8, 8, 10, 10)
    picture = Image.new("RGB", (480, 480), (40, 90, 250))
    overlay = draw_overlay(picture, report([0, 10], owner=owner))
    assert coloured_cells(overlay, 480, 480) == [0, 1, 4, 5, 10, 11, 14, 15]
    neighbours = draw_overlay(picture, report([0, 2, 8, 10], owner=owner))
    assert neighbours.getpixel((240, 60)) == (255, 255, 255)  # between two kept groups
    assert neighbours.getpixel((120, 60)) != (255, 255, 255)  # within one


def test_several_side_by_side():
    pictures = [Image.new("RGB", (480, 480), "red"), Image.new("RGB", (480, 240), "red")]
    sheet = draw_overlays(pictures, [report([0]), report([1])], "divprune", [None, None])
    assert sheet.width > 960
    assert is_coloured(sheet, 60, 60)
    assert is_coloured(sheet, 496 + 180, 30)


def test_refusals():
    picture = Image.new("RGB", (10, 10))
    with pytest.raises(ValueError, match="frames"):
        draw_overlay(picture, report([0], frames=2))
    with pytest.raises(ValueError, match="region"):
        draw_overlay(picture, report([0]), region=(5, 0, 5, 10))
    with pytest.raises(ValueError, match="1 images, 2 reports"):
        draw_overlays([picture], [report([0]), report([0])])
    with pytest.raises(ValueError, match="0 images"):
        draw_overlays([], [])
