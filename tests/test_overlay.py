"""Overlays: kept cells keep their colours, dropped ones lose them, at the right places of any shape of picture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from vtprune.overlay import (
    MOST_FRAMES,
    MOST_PANELS,
    STEP,
    STEP_FRAME,
    draw_overlay,
    draw_overlays,
    draw_report,
    draw_steps,
    draw_video_overlay,
    step_panels,
)
from vtprune.painting import LONGEST
from vtprune.report import MapReport, PictureReport, PlaceReport, Report, StepReport
from vtprune.videos import Video


def report(kept, rows=4, columns=4, owner=None, frames=1, steps=()):
    tokens = tuple(range(frames * rows * columns))
    kind = "video" if frames > 1 else "image"
    maps = (MapReport("picture", (frames, rows, columns), tokens),)
    return PictureReport(0, 0, kind, len(tokens), maps, tokens, tuple(kept), owner, steps=steps)


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


def test_without_a_caption_there_is_no_text():
    picture = Image.new("RGB", (480, 240), "red")
    assert draw_overlay(picture, report([0]), None).size == (480, 240)
    assert (
        draw_video_overlay(clip(3), report([0], frames=3), None).height
        < draw_video_overlay(clip(3), report([0], frames=3)).height
    )


def clip(frames, size=(96, 96)):
    pixels = np.full((frames, size[1], size[0], 3), (40, 90, 250), np.uint8)
    return Video(pixels, tuple(range(frames)), tuple(n / 2 for n in range(frames)), 2.0, frames, frames / 2)


def first_panels(sheet, count, side=480, gap=8):
    """The kept cells of the first panels of a contact sheet of square frames."""
    lefts = [number * (side + gap) for number in range(count)]
    return [coloured_cells(sheet.crop((left, 0, left + side, side)), side, side) for left in lefts]


def test_contact_sheet():
    """Two frames share a step of the grid: panels show the first of each, with the tokens kept of that step."""
    picture = report([0, 5, 16, 31, 33], frames=3)
    sheet = draw_video_overlay(clip(6), picture, "divprune")
    assert first_panels(sheet, 2) == [[0, 5], [0, 15]]
    assert draw_video_overlay(clip(5), picture).size == draw_video_overlay(clip(6), picture).size
    assert sheet.mode == "RGB"


def test_frames_that_are_maps_of_their_own():
    """As with families whose frames are pictures to the model."""
    whole = report([0, 21], frames=2)
    maps = tuple(MapReport("tile", (1, 4, 4), tuple(range(16 * n, 16 * n + 16))) for n in range(2))
    apart = dataclasses.replace(whole, maps=maps)
    assert np.array_equal(draw_video_overlay(clip(2), whole), draw_video_overlay(clip(2), apart))


def test_merged_over_time():
    owner = (*range(16), 0, *range(17, 32))
    sheet = draw_video_overlay(clip(2), report([0], owner=owner, frames=2))
    assert first_panels(sheet, 2) == [[0], [0]]


def test_long_videos_and_odd_shapes():
    for size in ((1, 1), (300, 20), (20, 300)):
        sheet = draw_video_overlay(clip(500, size), report([0], frames=500))
        assert max(sheet.size) < 20 * LONGEST
    small = draw_video_overlay(clip(MOST_PANELS, (96, 96)), report([0], frames=MOST_PANELS))
    assert draw_video_overlay(clip(500), report([0], frames=500)).size == small.size


def test_tiled_picture():
    """Thumbnail and canvas each show the whole picture; the newline tokens between rows are in neither."""
    maps = (
        MapReport("thumbnail", (1, 2, 2), (0, 1, 2, 3)),
        MapReport("canvas", (1, 2, 4), (4, 5, 6, 7, 9, 10, 11, 12)),
    )
    picture = PictureReport(0, 0, "image", 14, maps, tuple(range(14)), (3, 8, 9))
    sheet = draw_overlay(Image.new("RGB", (800, 800), (40, 90, 250)), picture)
    assert coloured_cells(sheet, 800, 800, 2, 2) == [3]
    assert coloured_cells(sheet.crop((808, 0, 1608, 800)), 800, 800, 2, 4) == [4]


@pytest.mark.parametrize(("size", "across"), [((900, 400), 3), ((400, 900), 2), ((1200, 200), 6)])
def test_tiles_whose_arrangement_is_not_told(size, across):
    """Six tiles of one token each, then the thumbnail: they lie as fits the picture best."""
    maps = tuple(MapReport("tile", (1, 1, 1), (n,)) for n in range(7))
    picture = PictureReport(0, 0, "image", 7, maps, tuple(range(7)), (1, 4))
    sheet = draw_overlay(Image.new("RGB", size, (40, 90, 250)), picture)
    width = (sheet.width - 8) // 2
    assert coloured_cells(sheet, width, width * size[1] / size[0], 6 // across, across) == [1, 4]


def test_a_clip_beside_a_picture():
    reports = [report([0], frames=2), report([1])]
    sheet = draw_overlays([clip(2), Image.new("RGB", (480, 480), "red")], reports, "divprune")
    assert sheet.width > 3 * 480


PAIRS = tuple(token // 2 * 2 for token in range(16))  # neighbours of a 4 x 4 grid
HELD = tuple(0.5 if token < 8 else 0.0 for token in range(16))
CHAIN = (
    StepReport("encoder layer 0 to 4", "tome", 16, 8, tuple(range(0, 16, 2)), PAIRS),
    StepReport("decoder layer 2", "fastv", 8, 4, (0, 6, 8, 14), PAIRS),
    StepReport("decoder cache 0 to 5", "snapkv", 4, 1, (0, 6, 8, 14), PAIRS, HELD),
)


def chained(steps=CHAIN):
    return report([0, 6, 8, 14], owner=PAIRS, steps=steps)


def test_steps_of_a_chain():
    """All cells first, then those that each place left, groups together; at the cache as bright as they are held."""
    blue = Image.new("RGB", (480, 480), (40, 90, 250))
    found = step_panels(blue, chained())
    assert [said.split("\n")[0] for _, said in found] == [
        "before",
        "1. encoder layer 0 to 4: tome",
        "2. decoder layer 2: fastv",
        "3. decoder cache 0 to 5: snapkv",
    ]
    assert [said.split("\n")[1] for _, said in found] == [
        "16 visual tokens",
        "16 -> 8 tokens",
        "8 -> 4 tokens",
        "4 -> 1 tokens per layer and head",
    ]
    left = [0, 1, 6, 7, 8, 9, 14, 15]
    assert [coloured_cells(drawn, STEP, STEP) for drawn, _ in found[:3]] == [list(range(16))] * 2 + [left]
    cached, whole = found[3][0], found[2][0]
    middle = STEP // 8
    grey = cached.getpixel((middle, 5 * middle))
    assert max(grey) - min(grey) < 40  # stands, but no cache holds it
    assert grey[2] < cached.getpixel((middle, middle))[2] < whole.getpixel((middle, middle))[2]
    assert found[1][0].getpixel((2 * middle, middle)) != (255, 255, 255)  # within a group
    assert found[1][0].getpixel((4 * middle, middle)) == (255, 255, 255)  # between two


def test_hidden_tokens_are_dark():
    """They are there, but nobody sees them."""
    seen = (1.0,) * 4 + (0.0,) * 12
    step = StepReport("decoder layer 2", "fastv", 16, 16, tuple(range(16)), None, seen)
    drawn, said = step_panels(Image.new("RGB", (480, 480), (40, 90, 250)), report(range(16), steps=(step,)))[1]
    assert coloured_cells(drawn, STEP, STEP) == [0, 1, 2, 3]
    assert said.endswith("12 of 16 tokens hidden")


def test_steps_in_lines():
    """As many panels in a line as fit, and about equally many in each."""
    blue = Image.new("RGB", (480, 480), (40, 90, 250))
    sizes = [draw_steps(blue, chained(CHAIN[:1] * count)).size for count in (1, 3, 4)]
    assert [round(width / STEP) for width, _ in sizes] == [2, 4, 3]
    assert sizes[2][1] > 2 * STEP > sizes[1][1]


def test_steps_of_a_video():
    """A line of a few frames for every step."""
    frames = 2 * MOST_FRAMES
    step = StepReport("encoder output", "random", frames, 2, (0, 5))
    maps = (MapReport("video", (frames, 2, 2), tuple(range(4 * frames))),)
    picture = PictureReport(0, 0, "video", 4 * frames, maps, (0, 5), (0, 5), steps=(step,))
    found = step_panels(clip(frames), picture)
    assert [drawn.width for drawn, _ in found] == [MOST_FRAMES * (STEP_FRAME + 8) - 8] * 2
    assert all(said.endswith(f"; {MOST_FRAMES} of {frames} frames shown") for _, said in found)
    assert coloured_cells(found[1][0], STEP_FRAME, STEP_FRAME, 2, 2) == [0]
    assert draw_steps(clip(frames), picture).height > 2 * STEP_FRAME


def whole_report(picture):
    places = tuple(PlaceReport(step.method, "encoder output", None, 16, 4) for step in picture.steps)
    return Report(("divprune",), 16, 4, 10, 5, None, None, places, (picture,))


def test_one_step_is_told_by_the_overlay():
    blue = Image.new("RGB", (480, 480), (40, 90, 250))
    one = chained((StepReport("encoder output", "divprune", 16, 4, (0, 6, 8, 14)),))
    overlay = draw_overlays([blue], [one], "divprune")
    assert np.array_equal(draw_report([blue], whole_report(one)), overlay)
    for more in (CHAIN[:2], CHAIN[2:]):  # several places; the cache, of which the overlay says nothing
        sheet = draw_report([blue], whole_report(chained(more)))
        assert sheet.height > overlay.height + STEP
        assert np.array_equal(np.asarray(sheet)[:480, :480], np.asarray(overlay)[:480])


def test_refusals():
    picture = Image.new("RGB", (10, 10))
    with pytest.raises(ValueError, match="draw_video_overlay"):
        draw_overlay(picture, report([0], frames=2))
    with pytest.raises(ValueError, match="region"):
        draw_overlay(picture, report([0]), region=(5, 0, 5, 10))
    with pytest.raises(ValueError, match="1 images, 2 reports"):
        draw_overlays([picture], [report([0]), report([0])])
    with pytest.raises(ValueError, match="0 images"):
        draw_overlays([], [])
    with pytest.raises(ValueError, match="about 3 frames, the video has 2"):
        draw_video_overlay(clip(2), report([0], frames=3))
    with pytest.raises(ValueError, match="region"):
        draw_video_overlay(clip(2), report([0], frames=2), region=(5, 0, 5, 10))
    with pytest.raises(ValueError, match="about a video, got Image"):
        step_panels(picture, report([0], frames=2))
    with pytest.raises(ValueError, match="about a picture, got Video"):
        draw_steps(clip(2), report([0]))
