"""Procedurally drawn scenes: coloured shapes, some with a printed character, on a textured background.

A scene is fully determined by an integer seed. Seeds below `TEST_SEED_START` are for training, seeds from there on for
testing, so the two sets never share a picture.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 224
"""Side of a scene in its own coordinates, in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 28, 32),
    "green": (24, 140, 48),
    "blue": (28, 60, 210),
    "yellow": (246, 226, 40),
    "purple": (128, 32, 160),
    "orange": (246, 134, 20),
    "cyan": (40, 208, 222),
    "white": (248, 248, 248),
}
"""The RGB colour behind every colour word (each object is drawn with a small random deviation from it)."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "star", "cross")
CHARACTERS: tuple[str, ...] = tuple("ACEHKLMPRTXY23456789")
"""Printable characters, without those that are easily taken for one another (O/0, I/1, S/5, Z/2, B/8)."""

QUADRANTS: tuple[str, ...] = ("top left", "top right", "bottom left", "bottom right")
BACKGROUNDS: tuple[str, ...] = ("noise", "gradient", "stripes", "blotches", "checks", "speckles")

TEST_SEED_START = 2**40
"""First seed of the test range; training seeds are 0 .. TEST_SEED_START - 1."""

_LIGHT = frozenset({"yellow", "orange", "cyan", "white"})
_GLYPH_RADIUS = {"circle": 22.0, "square": 21.0, "triangle": 29.0, "diamond": 25.0, "star": 29.0, "cross": 25.0}
_PLAIN_RADIUS = 16.0
_MAX_RADIUS = 33.0


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        shape: One of `SHAPES`.
        colour: One of the keys of `COLOURS`.
        rgb: The colour it is drawn in.
        x: Horizontal centre in scene pixels (0 .. `SIZE`).
        y: Vertical centre in scene pixels (0 .. `SIZE`).
        radius: Half the extent in scene pixels.
        angle: Rotation in degrees.
        character: The printed character, or None.
        glyph_height: Height of the printed character in scene pixels.
    """

    shape: str
    colour: str
    rgb: tuple[int, int, int]
    x: float
    y: float
    radius: float
    angle: float
    character: str | None
    glyph_height: float

    @property
    def quadrant(self) -> str | None:
        """The quarter of the picture that holds the whole object, or None if it lies across a centre line."""
        half = SIZE / 2
        if abs(self.x - half) < self.radius or abs(self.y - half) < self.radius:
            return None
        return ("top" if self.y < half else "bottom") + (" left" if self.x < half else " right")


@dataclass(frozen=True)
class Scene:
    """A scene: its seed, the kind of background and the objects, none of which overlap."""

    seed: int
    background: str
    objects: tuple[SceneObject, ...]


def make_scene(seed: int, *, objects: tuple[int, int] = (3, 9), characters: float = 0.55) -> Scene:
    """Compose the scene of a seed.

    Args:
        seed: Any non-negative integer.
        objects: Smallest and largest number of objects aimed at (fewer are placed if there is no room left).
        characters: Share of objects that carry a printed character.

    Returns:
        The scene; the same arguments always give the same one.
    """
    rng = np.random.default_rng(seed)
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    wanted = int(rng.integers(objects[0], objects[1] + 1))
    # Few colours or few shapes in a scene make things to count; many make things that can be told apart.
    colours = rng.permutation(list(COLOURS))[: rng.integers(2, len(COLOURS) + 1)]
    shapes = rng.permutation(SHAPES)[: rng.integers(2, len(SHAPES) + 1)]
    placed: list[SceneObject] = []
    for _ in range(wanted):
        shape, colour = str(rng.choice(shapes)), str(rng.choice(colours))
        character = str(rng.choice(CHARACTERS)) if rng.random() < characters else None
        smallest = _GLYPH_RADIUS[shape] if character else _PLAIN_RADIUS
        for attempt in range(40):
            radius = float(rng.uniform(smallest, _MAX_RADIUS if attempt < 20 else smallest + 1))
            x, y = rng.uniform(radius + 1, SIZE - radius - 1, size=2)
            if all(max(abs(x - o.x), abs(y - o.y)) > radius + o.radius + 2 for o in placed):
                rgb = np.clip(np.array(COLOURS[colour]) + rng.integers(-12, 13, size=3), 0, 255)
                placed.append(
                    SceneObject(
                        shape=shape,
                        colour=colour,
                        rgb=(int(rgb[0]), int(rgb[1]), int(rgb[2])),
                        x=float(x),
                        y=float(y),
                        radius=radius,
                        angle=float(rng.uniform(-8, 8)),
                        character=character,
                        glyph_height=float(rng.uniform(21, 25)),
                    )
                )
                break
    return Scene(seed, background, tuple(placed))


def _outline(obj: SceneObject, scale: float) -> list[tuple[float, float]]:
    """The corners of an object in picture pixels (a circle is drawn as an ellipse instead)."""
    corners: list[tuple[float, float]]
    if obj.shape == "square":
        corners = [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    elif obj.shape == "triangle":
        corners = [(0, -1), (1, 0.85), (-1, 0.85)]
    elif obj.shape == "diamond":
        corners = [(0, -1), (0.85, 0), (0, 1), (-0.85, 0)]
    elif obj.shape == "star":
        turns = [(1.0 if k % 2 == 0 else 0.48, math.pi * (k / 5 - 0.5)) for k in range(10)]
        corners = [(r * math.cos(a), r * math.sin(a)) for r, a in turns]
    else:
        a = 0.4
        corners = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a)]
        corners.append((-a, -a))
    cos, sin = math.cos(math.radians(obj.angle)), math.sin(math.radians(obj.angle))
    r = obj.radius * scale
    return [(obj.x * scale + r * (u * cos - v * sin), obj.y * scale + r * (u * sin + v * cos)) for u, v in corners]


def _fill(draw: ImageDraw.ImageDraw, obj: SceneObject, colour: int | tuple[int, int, int], scale: float) -> None:
    if obj.shape == "circle":
        x, y, r = obj.x * scale, obj.y * scale, obj.radius * 0.95 * scale
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    else:
        draw.polygon(_outline(obj, scale), fill=colour)


@functools.lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _print_character(draw: ImageDraw.ImageDraw, obj: SceneObject, scale: float) -> None:
    ink = (12, 12, 12) if obj.colour in _LIGHT else (250, 250, 250)
    # A capital of the embedded font is about 0.7 em high.
    font = _font(round(obj.glyph_height * scale / 0.72))
    offset = 0.15 * obj.radius if obj.shape == "triangle" else 0.0
    where = (obj.x * scale, (obj.y + offset) * scale)
    left, top, right, bottom = draw.textbbox(where, str(obj.character), font=font, anchor="mm")
    centred = (2 * where[0] - (left + right) / 2, 2 * where[1] - (top + bottom) / 2)
    draw.text(
        centred,
        str(obj.character),
        fill=ink,
        font=font,
        anchor="mm",
        stroke_width=max(1, round(scale)),
        stroke_fill=ink,
    )


def draw_object(draw: ImageDraw.ImageDraw, obj: SceneObject, scale: float) -> None:
    """Draw an object, with its character if it has one, on a canvas with `scale` pixels to a scene pixel."""
    _fill(draw, obj, obj.rgb, scale)
    if obj.character is not None:
        _print_character(draw, obj, scale)


def _resized(field: np.ndarray, resample: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(field).resize((SIZE, SIZE), resample))


def draw_background(scene: Scene) -> np.ndarray:
    """Draw the background of a scene: an array of shape (224, 224, 3), uint8, in muted colours."""
    rng = np.random.default_rng((scene.seed, 1))
    mix: np.ndarray
    base = rng.integers(50, 175, size=3)
    other = np.clip(base + rng.integers(-45, 46, size=3), 30, 200)
    if scene.background in ("noise", "speckles"):
        mix = np.full((SIZE, SIZE), float(rng.uniform(0, 1)), dtype=np.float32)
    elif scene.background == "blotches":
        cells = int(rng.integers(4, 14))
        mix = _resized(rng.integers(0, 256, (cells, cells), dtype=np.uint8), Image.Resampling.BICUBIC) / np.float32(255)
    elif scene.background == "checks":
        cells = int(rng.integers(4, 16))
        mix = _resized((np.indices((cells, cells)).sum(0) % 2 * 255).astype(np.uint8), Image.Resampling.NEAREST) / 255.0
    else:
        angle = rng.uniform(0, 2 * math.pi)
        y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
        along = x * math.cos(angle) + y * math.sin(angle)
        mix = (along + 1.0) / 2.0 if scene.background == "gradient" else np.sin(along * rng.uniform(15, 90)) / 2 + 0.5
    strength = int(rng.integers(4, 14)) if scene.background != "noise" else int(rng.integers(20, 48))
    grain = rng.integers(-strength, strength + 1, size=(SIZE, SIZE, 3 if rng.random() < 0.5 else 1), dtype=np.int16)
    picture = base + mix.astype(np.float32)[..., None] * (other - base).astype(np.float32) + grain
    if scene.background == "speckles":
        dots = rng.integers(0, SIZE, size=(2, int(rng.integers(300, 2500))))
        picture[dots[0], dots[1]] += rng.integers(-90, 91, size=(dots.shape[1], 1))
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_scene(scene: Scene, size: int = SIZE) -> Image.Image:
    """Draw a scene.

    Args:
        scene: The scene.
        size: Side of the picture in pixels. Larger pictures show the same scene with finer outlines.

    Returns:
        An RGB picture of `size` x `size` pixels.
    """
    picture = Image.fromarray(draw_background(scene))
    if size != SIZE:
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    scale = size / SIZE
    for obj in scene.objects:
        draw_object(draw, obj, scale)
    return picture


def owner_map(objects: Sequence[SceneObject]) -> Image.Image:
    """Which object each pixel of a scene belongs to: a grey picture of 0 (background) and numbers from 1 on."""
    picture = Image.new("L", (SIZE, SIZE), 0)
    draw = ImageDraw.Draw(picture)
    for number, obj in enumerate(objects, start=1):
        _fill(draw, obj, number, 1.0)
    return picture


@dataclass(frozen=True)
class PatchTruth:
    """What lies under each patch of a `grid` x `grid` division of a scene; arrays of shape (grid * grid,).

    Attributes:
        owner: Index of the object that covers most of the patch, -1 for background.
        centre: 1.0 for the patch that holds an object's centre, else 0.0.
    """

    owner: np.ndarray
    centre: np.ndarray


def patch_truth(scene: Scene, grid: int = 16, minimum: float = 0.12) -> PatchTruth:
    """Ground truth per patch.

    Args:
        scene: The scene.
        grid: Patches per side; `SIZE` must be divisible by it.
        minimum: Share of a patch that an object has to cover to own it.

    Raises:
        ValueError: If `SIZE` is not divisible by `grid`.
    """
    if SIZE % grid:
        raise ValueError(f"a scene of {SIZE} pixels cannot be divided into {grid} patches per side; use a divisor")
    patch = SIZE // grid
    owners = np.asarray(owner_map(scene.objects))
    cells = owners.reshape(grid, patch, grid, patch).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    kinds = len(scene.objects) + 1
    flat = cells.astype(np.int64) + np.arange(grid * grid)[:, None] * kinds
    covered = np.bincount(flat.ravel(), minlength=grid * grid * kinds).reshape(grid * grid, kinds)[:, 1:]
    if covered.shape[1] == 0:
        return PatchTruth(np.full(grid * grid, -1), np.zeros(grid * grid, dtype=np.float32))
    owner = np.where(covered.max(1) >= minimum * patch * patch, covered.argmax(1), -1)
    centre = np.zeros(grid * grid, dtype=np.float32)
    for number, obj in enumerate(scene.objects):
        cell = int(obj.y // patch) * grid + int(obj.x // patch)
        centre[cell] = 1.0
        owner[cell] = number
    return PatchTruth(owner, centre)
