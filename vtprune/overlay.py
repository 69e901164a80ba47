"""Drawing which visual tokens of a picture were kept.

Kept cells keep their colours; dropped ones turn grey and dark, so the difference does not rest on hue, and the border
between the two is drawn in amber on black, which stands out on dark and on bright pictures alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtprune.report import PictureReport

CELL = 20
"""Smallest side of a cell in pixels, as far as `LONGEST` allows."""

SHORTEST, LONGEST = 480, 1600
"""A picture is scaled so that its longer side, in pixels, lies between these."""

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
        ValueError: `picture` has more than one frame, or `region` covers nothing of the picture.
    """
    frames, rows, columns = picture.grid
    if frames != 1:
        raise ValueError(f"an overlay shows one picture, got a grid of {frames} frames.")
    region = region or (0.0, 0.0, float(image.width), float(image.height))
    if not (region[0] < region[2] and region[1] < region[3]):
        raise ValueError(f"region must be (left, top, right, bottom) with left < right and top < bottom, got {region}.")
    canvas, scale = _enlarge(image.convert("RGB"), region, rows, columns)
    xs = np.rint(np.linspace(region[0] * scale[0], region[2] * scale[0], columns + 1)).astype(int)
    ys = np.rint(np.linspace(region[1] * scale[1], region[3] * scale[1], rows + 1)).astype(int)

    owner = np.array(picture.owner if picture.owner is not None else range(rows * columns)).reshape(rows, columns)
    kept = np.isin(owner, picture.kept)
    canvas = _dim(canvas, kept, xs, ys)
    canvas = _grid(canvas, xs, ys)
    if picture.owner is not None:
        _borders(canvas, np.where(kept, owner, -1), xs, ys, [(_PAPER, 1)])
    unit = max(1, round(min(canvas.size) / 480))
    _borders(canvas, kept, xs, ys, [(_BLACK, 5 * unit), (_AMBER, 3 * unit)])
    return _with_caption(canvas, caption, picture, merged=picture.owner is not None)


def draw_overlays(
    images: Sequence[Image.Image],
    pictures: Sequence[PictureReport],
    caption: str = "",
    regions: Sequence[Box | None] | None = None,
) -> Image.Image:
    """Draw the overlays of several pictures side by side.

    Args:
        images: The pictures, in the order of `pictures`.
        pictures: Their parts of `vtprune.report(model)`.
        caption: As for `draw_overlay`.
        regions: As for `draw_overlay`, one for each picture.

    Raises:
        ValueError: The numbers of `images`, `pictures` and `regions` differ, or there are none.
    """
    regions = regions or [None] * len(images)
    if not images or not len(images) == len(pictures) == len(regions):
        raise ValueError(f"got {len(images)} images, {len(pictures)} reports and {len(regions)} regions.")
    panels = [draw_overlay(*parts[:2], caption, parts[2]) for parts in zip(images, pictures, regions, strict=True)]
    gap = 16
    size = (sum(panel.width for panel in panels) + gap * (len(panels) - 1), max(panel.height for panel in panels))
    sheet = Image.new("RGB", size, _PAPER)
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + gap
    return sheet


def _enlarge(image: Image.Image, region: Box, rows: int, columns: int) -> tuple[Image.Image, tuple[float, float]]:
    """The picture at the overlay's size, and how many of its pixels stand for one of `image`, across and down."""
    width, height = image.size
    cell = min((region[2] - region[0]) / columns, (region[3] - region[1]) / rows)
    scale = max(CELL / cell, SHORTEST / max(width, height))
    scale = min(scale, LONGEST / max(width, height)) if scale > 1 else min(1.0, LONGEST / max(width, height))
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


def _with_caption(canvas: Image.Image, caption: str, picture: PictureReport, merged: bool) -> Image.Image:
    total, kept = picture.grid[1] * picture.grid[2], len(picture.kept)
    count = f"{kept} of {total} visual tokens kept ({kept / total:.0%})"
    legend = "merged tokens share a white outline; grey: dropped" if merged else "in colour: kept; grey: dropped"
    room = max(canvas.width - 16, 1)
    lines = [(caption, _INK)] if caption else []
    lines += [(count, _INK), (legend, _MUTED)]
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
