"""Drawing which visual tokens of a picture or a video were kept: in the end, and behind every place of a chain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vtprune.methods.base import Place
from vtprune.painting import CELL, INK, LONGEST, MUTED, SHORTEST, Box, below, checked, panel, stacked, tiled
from vtprune.report import PictureReport, Report, StepReport
from vtprune.videos import Video

MOST_PANELS = 64
"""Of a longer video that many frames are drawn."""

MOST_FRAMES = 5
"""Of a longer video that many frames are drawn for every step of a chain."""

STEP, STEP_FRAME = 384, 240
"""Longer side of a map of tokens (up to twice that if its cells are small), and of a frame, where every step of a chain
is drawn, in pixels."""

_GAP = 16


def draw_overlay(
    image: Image.Image, picture: PictureReport, caption: str | None = "", region: Box | None = None
) -> Image.Image:
    """Draw the kept tokens of one picture over it.

    Args:
        image: The picture as it was given to the model's processor.
        picture: Its part of `vtprune.report(model)`.
        caption: Text before the counts below the picture, the method say; None for no text at all.
        region: (left, top, right, bottom) in pixels of `image`: what the token grid covers. By default the whole
            picture, as with processors that stretch it to the model's square; a processor that crops covers less.

    Returns:
        A new RGB picture with a caption. Small pictures are enlarged until the cells can be seen.

    Raises:
        ValueError: `picture` is a video, or `region` covers nothing of the picture.
    """
    if picture.kind != "image":
        raise ValueError("an overlay shows a picture, got the report of a video; use draw_video_overlay.")
    return _with_caption(_maps(image, picture, region, None), caption, picture)


def draw_video_overlay(
    video: Video, picture: PictureReport, caption: str | None = "", region: Box | None = None
) -> Image.Image:
    """Draw the kept tokens of a video as a contact sheet: one panel for each frame of the token grid, with its time.

    Where a model looks at several frames together, the panel shows the first of them.

    Args:
        video: The video as it was given to the model's processor.
        picture: Its part of `vtprune.report(model)`.
        caption: As for `draw_overlay`.
        region: As for `draw_overlay`, in pixels of a frame.

    Returns:
        A new RGB picture. Of more than `MOST_PANELS` frames of the grid it shows that many, evenly spaced.

    Raises:
        ValueError: `picture` has more frames than the video or frames of several grids, or `region` covers nothing.
    """
    sheet, left_out = _frames(video, picture, region, MOST_PANELS, None)
    return _with_caption(sheet, caption, picture, left_out)


def draw_overlays(
    images: Sequence[Image.Image | Video],
    pictures: Sequence[PictureReport],
    caption: str | None = "",
    regions: Sequence[Box | None] | None = None,
) -> Image.Image:
    """Draw the overlays of several pictures and videos side by side.

    Args:
        images: The pictures and videos, in the order of `pictures`.
        pictures: Their parts of `vtprune.report(model)`.
        caption: As for `draw_overlay`.
        regions: As for `draw_overlay`, one for each picture.

    Raises:
        ValueError: The numbers of `images`, `pictures` and `regions` differ, or there are none.
    """
    regions = regions or [None] * len(images)
    if not images or not len(images) == len(pictures) == len(regions):
        raise ValueError(f"got {len(images)} images, {len(pictures)} reports and {len(regions)} regions.")
    panels = [
        draw_video_overlay(image, picture, caption, region)
        if isinstance(image, Video)
        else draw_overlay(image, picture, caption, region)
        for image, picture, region in zip(images, pictures, regions, strict=True)
    ]
    return tiled(panels, len(panels), _GAP)


def draw_report(
    images: Sequence[Image.Image | Video], report: Report, regions: Sequence[Box | None] | None = None
) -> Image.Image:
    """Draw the overlays of all pictures and videos, and below them what every place left, where one tells too little.

    That is where a chain acted at several places, and where the cache lost tokens or some were hidden.

    Args:
        images: The pictures and videos, in the order of the report's.
        report: `vtprune.report(model)`.
        regions: As for `draw_overlays`.

    Raises:
        ValueError: As `draw_overlays`.
    """
    sheet = draw_overlays(images, report.pictures, " + ".join(report.methods), regions)
    if not has_steps(report):
        return sheet
    shown = zip(images, report.pictures, regions or [None] * len(images), strict=True)
    return stacked([sheet, *(draw_steps(image, picture, region=region) for image, picture, region in shown)], 2 * _GAP)


def has_steps(report: Report) -> bool:
    """Whether the overlay of what was kept in the end tells too little of how that came to be."""
    return len(report.summary()) > 1 or any(step.held for picture in report.pictures for step in picture.steps)


def draw_steps(
    image: Image.Image | Video, picture: PictureReport, caption: str = "", region: Box | None = None
) -> Image.Image:
    """Draw what every place of a chain left of a picture or a video, with numbers and a legend.

    Args:
        image: The picture or video as it was given to the model's processor.
        picture: Its part of `vtprune.report(model)`.
        caption: Text before the legend, the methods say.
        region: As for `draw_overlay`.

    Returns:
        A new RGB picture: the panels of `step_panels` in order, as many in a line as `LONGEST` allows.

    Raises:
        ValueError: As `step_panels`.
    """
    panels = [
        below(drawn, [(line, INK) for line in said.split("\n")]) for drawn, said in step_panels(image, picture, region)
    ]
    fitting = max(1, (LONGEST + _GAP) // (max(one.width for one in panels) + _GAP))
    lines = -(-len(panels) // fitting)
    sheet = tiled(panels, -(-len(panels) // lines), _GAP)
    return below(sheet, [*([(caption, INK)] if caption else []), (_legend(picture), MUTED)])


def step_panels(
    image: Image.Image | Video, picture: PictureReport, region: Box | None = None
) -> list[tuple[Image.Image, str]]:
    """The untouched picture or video, and what every place of a chain left of it, each with two lines of text.

    At the cache, cells are the darker the fewer of the layers and heads hold them.

    Args:
        image: As for `draw_steps`.
        picture: As for `draw_steps`.
        region: As for `draw_overlay`.

    Returns:
        RGB pictures. Of a video each is a line of at most `MOST_FRAMES` frames of the token grid, evenly spaced.

    Raises:
        ValueError: `picture` is about a video and `image` is none, or the other way round; else as `draw_overlay` and
            `draw_video_overlay`.
    """
    if (picture.kind == "video") is not isinstance(image, Video):
        kind = "a video" if picture.kind == "video" else "a picture"
        raise ValueError(f"the report is about {kind}, got {type(image).__name__}.")
    everything = StepReport("", "", picture.tokens, picture.tokens, tuple(range(picture.tokens)))
    panels = []
    for number, step in enumerate((everything, *picture.steps)):
        now = dataclasses.replace(picture, kept=step.kept, owner=step.owner)
        if isinstance(image, Video):
            drawn, note = _frames(image, now, region, MOST_FRAMES, STEP_FRAME, step.held)
        else:
            drawn, note = _maps(image, now, region, STEP, step.held), ""
        said = _said(number, step) if number else f"before\n{picture.tokens} visual tokens"
        panels.append((drawn, f"{said}; {note}" if note else said))
    return panels


def _said(number: int, step: StepReport) -> str:
    """Two lines about a step."""
    count = f"{step.tokens_before} -> {step.tokens_after} tokens"
    if _hides(step):
        count = f"{len(step.kept) - round(sum(step.held or ()))} of {step.tokens_before} tokens hidden"
    elif step.held is not None:
        count = f"{count} per layer and head"
    return f"{number}. {step.where}: {step.method}\n{count}"


def _hides(step: StepReport) -> bool:
    return step.held is not None and not step.where.startswith(Place.CACHE)


def _legend(picture: PictureReport) -> str:
    steps = picture.steps
    said = ["in colour: still there", "grey: gone or hidden" if any(_hides(step) for step in steps) else "grey: gone"]
    if any(step.owner is not None for step in steps):
        said.append("merged tokens share a white outline")
    if any(0 < share < 1 for step in steps for share in step.held or ()):
        said.append("the darker, the fewer layers and heads hold a token")
    return "; ".join(said)


Plane = tuple[np.ndarray, np.ndarray]
"""Of a map, (frames, rows, columns) both: the merged group of each token, 0 if alone; how much is kept, from 0 to 1."""


def _planes(picture: PictureReport, held: Sequence[float] | None = None) -> list[Plane]:
    """The maps of a picture; `held`: the share of each token that is kept, by default 1 of those in `picture.kept`."""
    stands = np.array(picture.owner if picture.owner is not None else range(picture.tokens))
    share = np.isin(stands, picture.kept).astype(float)
    if held is not None:
        share *= np.array(held)[stands]
    several = np.bincount(stands)[stands] > 1
    group = np.where(several, stands + 1, 0)
    tokens = [(np.array(part.tokens), part.grid) for part in picture.maps]
    return [(group[at].reshape(grid), share[at].reshape(grid)) for at, grid in tokens]


def _maps(
    image: Image.Image,
    picture: PictureReport,
    region: Box | None,
    side: int | None,
    held: Sequence[float] | None = None,
) -> Image.Image:
    """The maps of a picture side by side, each of that longer side, or up to twice where its cells are small.

    None: as large as an overlay may be.
    """
    planes = _planes(picture, held)
    if len(planes) > 1 and all(part.name == "tile" for part in picture.maps):
        planes = _joined(planes, image.width / image.height)
    # A thumbnail and the tiles put together again each cover the whole picture, whatever else is cropped.
    region = checked(region if len(planes) == 1 else None, image.size)
    panels = []
    for group, share in planes:
        sides = SHORTEST, LONGEST // len(planes)
        if side is not None:
            sides = (min(max(side, CELL * max(share.shape)), 2 * side),) * 2
        panels.append(panel(image, group[0], share[0], region, sides))
    return tiled(panels, len(panels), 8)


def _frames(
    video: Video,
    picture: PictureReport,
    region: Box | None,
    most: int,
    side: int | None,
    held: Sequence[float] | None = None,
) -> tuple[Image.Image, str]:
    """At most so many frames of a video's grid with their times, and a note if some are left out.

    In a line, each of that longer side; None: as a contact sheet.
    """
    planes = _planes(picture, held)
    if len({group.shape[1:] for group, _ in planes}) != 1:
        raise ValueError("the overlay of a video whose frames have different grids is not supported.")
    group, share = (np.concatenate(parts) for parts in zip(*planes, strict=True))
    steps = len(group)
    if steps > len(video.frames):
        raise ValueError(f"the report is about {steps} frames, the video has {len(video.frames)}.")
    region = checked(region, video.size)
    together = -(-len(video.frames) // steps)
    shown = sorted({round(place) for place in np.linspace(0, steps - 1, min(steps, most))})
    across = len(shown)
    if side is None:
        across = min(across, max(1, round((1.6 * across * video.size[1] / video.size[0]) ** 0.5)))
        side = min(SHORTEST, LONGEST // across)
    panels = []
    for step in shown:
        frame = Image.fromarray(video.frames[step * together])
        drawn = panel(frame, group[step], share[step], region, (side, side))
        panels.append(below(drawn, [(f"{video.times[step * together]:.2f} s", INK)]))
    note = f"{len(shown)} of {steps} frames shown" if len(shown) < steps else ""
    return tiled(panels, across, 8), note


def _joined(tiles: list[Plane], aspect: float) -> list[Plane]:
    """The tiles of a picture of that aspect (width / height) put together, and its thumbnail, which is the last one.

    Models that are not told how many tiles lie beside one another leave it to be found again: InternVL's processor
    takes the arrangement whose aspect is nearest to the picture's.
    """
    *parts, thumbnail = tiles
    fitting = [n for n in range(1, len(parts) + 1) if len(parts) % n == 0]
    across = min(fitting, key=lambda n: abs(aspect - n * n / len(parts)))
    group, share = (
        np.block([[tile[0] for tile in plane[start : start + across]] for start in range(0, len(plane), across)])[None]
        for plane in zip(*parts, strict=True)
    )
    return [(group, share), thumbnail]


def caption_lines(picture: PictureReport) -> tuple[str, str]:
    """What stands below an overlay: how many tokens were kept, and what the colours mean."""
    total, kept = picture.tokens, len(picture.kept)
    merged = picture.owner is not None
    legend = "merged tokens share a white outline; grey: dropped" if merged else "in colour: kept; grey: dropped"
    return f"{kept} of {total} visual tokens kept ({kept / total:.0%})", legend


def _with_caption(canvas: Image.Image, caption: str | None, picture: PictureReport, note: str = "") -> Image.Image:
    if caption is None:
        return canvas
    count, legend = caption_lines(picture)
    lines = [(caption, INK)] if caption else []
    return below(canvas, [*lines, (count, INK), (f"{legend}; {note}" if note else legend, MUTED)])
