"""How cells of a token grid are painted over a picture, and pictures put together with text below them.

Kept cells keep their colours; dropped ones turn grey and dark, so the difference does not rest on hue, and the border
between the two is drawn in amber on black, which stands out on dark and on bright pictures alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 20
"""Smallest side of a cell in pixels, as far as `LONGEST` allows."""

FINE = 16
"""Borders are thinner where a side of a cell has fewer pixels than this."""

SHORTEST, LONGEST = 480, 1600
"""A picture is scaled so that its longer side, in pixels, lies between these."""

_AMBER = (255, 176, 0)
_BLACK = (0, 0, 0)
_SHADE = (24, 26, 32)
PAPER, INK, MUTED = (255, 255, 255), (32, 32, 32), (96, 96, 96)

Box = tuple[float, float, float, float]


def checked(region: Box | None, size: tuple[int, int]) -> Box:
    """The region of a picture of `size` (width, height) that a grid covers, by default all of it.

    Raises:
        ValueError: It covers nothing.
    """
    region = region or (0.0, 0.0, float(size[0]), float(size[1]))
    if not (region[0] < region[2] and region[1] < region[3]):
        raise ValueError(f"region must be (left, top, right, bottom) with left < right and top < bottom, got {region}.")
    return region


def panel(image: Image.Image, group: np.ndarray, share: np.ndarray, region: Box, sides: tuple[int, int]) -> Image.Image:
    """A picture with its kept cells.

    Args:
        image: The picture.
        group: (rows, columns), the group of cells that each belongs to, which is outlined; 0 for single ones.
        share: (rows, columns), how much of each is kept: 1 in full colour, 0 dropped.
        region: What of the picture the cells cover.
        sides: Its longer side lies between these, in pixels.
    """
    kept = share > 0
    rows, columns = kept.shape
    canvas, scale = _enlarge(image.convert("RGB"), region, rows, columns, sides)
    xs = np.rint(np.linspace(region[0] * scale[0], region[2] * scale[0], columns + 1)).astype(int)
    ys = np.rint(np.linspace(region[1] * scale[1], region[3] * scale[1], rows + 1)).astype(int)
    canvas = _dim(canvas, share, xs, ys)
    canvas = _grid(canvas, xs, ys)
    fine = min(np.diff(xs).min(), np.diff(ys).min()) < FINE
    _borders(canvas, np.where(kept, group, -1), xs, ys, [(_BLACK, 2 if fine else 3), (PAPER, 1)])
    unit = max(1, round(min(canvas.size) / 480))
    _borders(canvas, kept, xs, ys, [(_BLACK, 3), (_AMBER, 2)] if fine else [(_BLACK, 5 * unit), (_AMBER, 3 * unit)])
    return canvas


def tiled(panels: Sequence[Image.Image], across: int, gap: int) -> Image.Image:
    """Pictures side by side, so many `across`, with a gap in pixels between them."""
    width, height = max(panel.width for panel in panels), max(panel.height for panel in panels)
    widths = [width] * across if len(panels) > across else [panel.width for panel in panels]
    lines = -(-len(panels) // across)
    sheet = Image.new("RGB", (sum(widths) + gap * (across - 1), lines * height + gap * (lines - 1)), PAPER)
    for number, panel in enumerate(panels):
        line, place = divmod(number, across)
        sheet.paste(panel, (sum(widths[:place]) + gap * place, line * (height + gap)))
    return sheet


def stacked(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
    """Pictures below one another, with a gap in pixels between them."""
    height = sum(one.height for one in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (max(one.width for one in pictures), height), PAPER)
    top = 0
    for one in pictures:
        sheet.paste(one, (0, top))
        top += one.height + gap
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


def _dim(canvas: Image.Image, share: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> Image.Image:
    mask = Image.new("L", canvas.size, 0)
    draw = ImageDraw.Draw(mask)
    for row, column in zip(*np.nonzero(share), strict=True):
        cell = (xs[column], ys[row], xs[column + 1] - 1, ys[row + 1] - 1)
        draw.rectangle(cell, fill=round(255 * float(share[row, column])))
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


def below(canvas: Image.Image, lines: Sequence[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """The canvas with lines of text below it."""
    room = max(canvas.width - 16, 1)
    fonts = [_fitting(text, room) for text, _ in lines]
    heights = [int(font.getbbox("Ag")[3]) + 4 for font in fonts]
    out = Image.new("RGB", (canvas.width, canvas.height + sum(heights) + 12), PAPER)
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
