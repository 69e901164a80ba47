"""Drawing which visual tokens of a picture or a video were kept.

Kept cells keep their colours; dropped ones turn grey and dark, so the difference does not rest on hue, and the border
between the two is drawn in amber on black, which stands out on dark and on bright pictures alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtprune.report import PictureReport
from vtprune.videos import Video

CELL = 20
"""Smallest side of a cell in pixels, as far as `LONGEST` allows."""

SHORTEST, LONGEST = 480, 1600
"""A picture is scaled so that its longer side, in pixels, lies between these."""

MOST_PANELS = 64
"""Of a longer video that many frames are drawn."""

_AMBER = (255, 176, 0)
_BLACK = (0, 0, 0)
_SHADE = (24, 26, 32)
_PAPER, _INK, _MUTED = (255, 255, 255), (32, 32, 32), (96, 96, 96)

Box = tuple[float, float, float, float]


def draw_overlay(
    image: Image.Image, picture: PictureReport, caption: str = "", region: Box | None = None
) -> Image.Image:
    """Draw the kept tokens of one picture over it.

    Args:
        image: The picture as it was given to the model's processor.
        picture: Its part of `vtprune.report(model)`.
        caption: Text before the counts below the picture, the method say.
        region: (left, top, right, bottom) in pixels of `image`: what the token grid covers. By default the whole
            picture, as with processors that stretch it to the model's square; a processor that crops covers less.

    Returns:
        A new RGB picture with a caption. Small pictures are enlarged until the cells can be seen.

    Raises:
        ValueError: `picture` is a video, or `region` covers nothing of the picture.
    """
    if picture.kind != "image":
        raise ValueError("an overlay shows a picture, got the report of a video; use draw_video_overlay.")
    planes = _planes(picture)
    if len(planes) > 1 and all(part.name == "tile" for part in picture.maps):
        planes = _joined(planes, image.width / image.height)
    # A thumbnail and the tiles put together again each cover the whole picture, whatever else is cropped.
    region = _checked(region if len(planes) == 1 else None, image.size)
    merged, sides = picture.owner is not None, (SHORTEST, LONGEST // len(planes))
    panels = [_panel(image, owner[0], kept[0], merged, region, sides) for owner, kept in planes]
    return _with_caption(_tiled(panels, len(panels), 8), caption, picture)


def draw_video_overlay(
    video: Video, picture: PictureReport, caption: str = "", region: Box | None = None
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
    planes = _planes(picture)
    if len({owner.shape[1:] for owner, _ in planes}) != 1:
        raise ValueError("the overlay of a video whose frames have different grids is not supported.")
    owner, kept = (np.concatenate(parts) for parts in zip(*planes, strict=True))
    steps = len(owner)
    if steps > len(video.frames):
        raise ValueError(f"the report is about {steps} frames, the video has {len(video.frames)}.")
    region = _checked(region, video.size)
    together = -(-len(video.frames) // steps)
    shown = sorted({round(place) for place in np.linspace(0, steps - 1, min(steps, MOST_PANELS))})
    across = min(len(shown), max(1, round((1.6 * len(shown) * video.size[1] / video.size[0]) ** 0.5)))
    side = min(SHORTEST, LONGEST // across)
    panels = []
    for step in shown:
        frame = Image.fromarray(video.frames[step * together])
        panel = _panel(frame, owner[step], kept[step], picture.owner is not None, region, (side, side))
        panels.append(_below(panel, [(f"{video.times[step * together]:.2f} s", _INK)]))
    sheet = _tiled(panels, across, 8)
    left_out = f"{len(shown)} of {steps} frames shown" if len(shown) < steps else ""
    return _with_caption(sheet, caption, picture, left_out)


def draw_overlays(
    images: Sequence[Image.Image | Video],
    pictures: Sequence[PictureReport],
    caption: str = "",
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
    return _tiled(panels, len(panels), 16)


def _checked(region: Box | None, size: tuple[int, int]) -> Box:
    region = region or (0.0, 0.0, float(size[0]), float(size[1]))
    if not (region[0] < region[2] and region[1] < region[3]):
        raise ValueError(f"region must be (left, top, right, bottom) with left < right and top < bottom, got {region}.")
    return region


def _planes(picture: PictureReport) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each map: who stands for each token, and whether that one is kept, as (frames, rows, columns)."""
    stands = np.array(picture.owner if picture.owner is not None else range(picture.tokens))
    owners = [stands[np.array(part.tokens)].reshape(part.grid) for part in picture.maps]
    return [(owner, np.isin(owner, picture.kept)) for owner in owners]


def _joined(tiles: list[tuple[np.ndarray, np.ndarray]], aspect: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """The tiles of a picture of that aspect (width / height) put together, and its thumbnail, which is the last one.

    Models that are not told how many tiles lie beside one another leave it to be found again: InternVL's processor
    takes the arrangement whose aspect is nearest to the picture's.
    """
    *parts, thumbnail = tiles
    fitting = [n for n in range(1, len(parts) + 1) if len(parts) % n == 0]
    across = min(fitting, key=lambda n: abs(aspect - n * n / len(parts)))
    owner, kept = (
        np.block([[tile[0] for tile in plane[start : start + across]] for start in range(0, len(plane), across)])[None]
        for plane in zip(*parts, strict=True)
    )
    return [(owner, kept), thumbnail]


def _panel(
    image: Image.Image, owner: np.ndarray, kept: np.ndarray, merged: bool, region: Box, sides: tuple[int, int]
) -> Image.Image:
    """A picture with its kept cells; its longer side lies between the two `sides`, in pixels."""
    rows, columns = kept.shape
    canvas, scale = _enlarge(image.convert("RGB"), region, rows, columns, sides)
    xs = np.rint(np.linspace(region[0] * scale[0], region[2] * scale[0], columns + 1)).astype(int)
    ys = np.rint(np.linspace(region[1] * scale[1], region[3] * scale[1], rows + 1)).astype(int)
    canvas = _dim(canvas, kept, xs, ys)
    canvas = _grid(canvas, xs, ys)
    if merged:
        _borders(canvas, np.where(kept, owner, -1), xs, ys, [(_PAPER, 1)])
    unit = max(1, round(min(canvas.size) / 480))
    _borders(canvas, kept, xs, ys, [(_BLACK, 5 * unit), (_AMBER, 3 * unit)])
    return canvas


def _tiled(panels: Sequence[Image.Image], across: int, gap: int) -> Image.Image:
    width, height = max(panel.width for panel in panels), max(panel.height for panel in panels)
    widths = [width] * across if len(panels) > across else [panel.width for panel in panels]
    lines = -(-len(panels) // across)
    sheet = Image.new("RGB", (sum(widths) + gap * (across - 1), lines * height + gap * (lines - 1)), _PAPER)
    for number, panel in enumerate(panels):
        line, place = divmod(number, across)
        sheet.paste(panel, (sum(widths[:place]) + gap * place, line * (height + gap)))
    return sheet


def _enlarge(
    image: Image.Image, region: Box, rows: int, columns: int, sides: tuple[int, int]
) -> tuple[Image.Image, tuple[float, float]]:
    """The picture at the overlay's size, and how many of its pixels stand for one of `image`, across and down."""
    width, height = image.size
    cell = min((region[2] - region[0]) / columns, (region[3] - region[1]) / rows)
    shortest, longest = (side / max(width, height) for side in sides)
    scale = max(CELL / cell, shortest)
    scale = min(scale, longest) if scale > 1 else min(1.0, longest)
    # A picture of few pixels' height would leave its cells too flat to be seen: it is shown stretched.
    size = (max(round(width * scale), 10 * columns), max(round(height * scale), 10 * rows))
    # Enlarged pixels stay squares: smoothing would show detail that is not there.
    filter_ = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS
    return image.resize(size, filter_), (size[0] / width, size[1] / height)


def _dim(canvas: Image.Image, kept: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> Image.Image:
    mask = Image.new("L", canvas.size, 0)
    draw = ImageDraw.Draw(mask)
    for row, column in zip(*np.nonzero(kept), strict=True):
        draw.rectangle((xs[column], ys[row], xs[column + 1] - 1, ys[row + 1] - 1), fill=255)
    shaded = Image.blend(canvas.convert("L").convert("RGB"), Image.new("RGB", canvas.size, _SHADE), 0.62)
    return Image.composite(canvas, shaded, mask)


def _grid(canvas: Image.Image, xs: np.ndarray, ys: np.ndarray) -> Image.Image:
    lines = Image.new("RGBA", canvas.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(lines)
    for x in xs:
        draw.line((x, ys[0], x, ys[-1]), fill=(255, 255, 255, 56))
    for y in ys:
        draw.line((xs[0], y, xs[-1], y), fill=(255, 255, 255, 56))
    return Image.alpha_composite(canvas.convert("RGBA"), lines).convert("RGB")


def _borders(
    canvas: Image.Image,
    labels: np.ndarray,
    xs: np.ndarray,
    ys: np.ndarray,
    strokes: Sequence[tuple[tuple[int, int, int], int]],
) -> None:
    """Draw a line, stroke over stroke, wherever neighbouring cells differ in their label; outside, all are dropped."""
    around = np.pad(labels, 1, constant_values=False if labels.dtype == bool else -1)
    upright = zip(*np.nonzero(around[1:-1, 1:] != around[1:-1, :-1]), strict=True)
    level = zip(*np.nonzero(around[1:, 1:-1] != around[:-1, 1:-1]), strict=True)
    segments = [(xs[c], ys[r], xs[c], ys[r + 1]) for r, c in upright]
    segments += [(xs[c], ys[r], xs[c + 1], ys[r]) for r, c in level]
    draw = ImageDraw.Draw(canvas)
    for colour, width in strokes:
        before, after = width // 2, (width - 1) // 2
        for x0, y0, x1, y1 in segments:
            # Rectangles rather than lines: they meet at the corners without gaps.
            draw.rectangle((x0 - before, y0 - before, x1 + after, y1 + after), fill=colour)


def _with_caption(canvas: Image.Image, caption: str, picture: PictureReport, note: str = "") -> Image.Image:
    total, kept, merged = picture.tokens, len(picture.kept), picture.owner is not None
    count = f"{kept} of {total} visual tokens kept ({kept / total:.0%})"
    legend = "merged tokens share a white outline; grey: dropped" if merged else "in colour: kept; grey: dropped"
    lines = [(caption, _INK)] if caption else []
    return _below(canvas, [*lines, (count, _INK), (f"{legend}; {note}" if note else legend, _MUTED)])


def _below(canvas: Image.Image, lines: Sequence[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """The canvas with lines of text below it."""
    room = max(canvas.width - 16, 1)
    fonts = [_fitting(text, room) for text, _ in lines]
    heights = [int(font.getbbox("Ag")[3]) + 4 for font in fonts]
    out = Image.new("RGB", (canvas.width, canvas.height + sum(heights) + 12), _PAPER)
    out.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(out)
    top = canvas.height + 6
    for (text, colour), font, height in zip(lines, fonts, heights, strict=True):
        draw.text((8, top), text, fill=colour, font=font)
        top += height
    return out


def _fitting(text: str, room: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font of at most 16 pixels in which the text is no wider than `room` pixels (8 at least)."""
    for size in range(16, 8, -1):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= room:
            return font
    return ImageFont.load_default(8)
