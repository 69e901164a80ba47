"""Procedurally drawn clips: coloured shapes that appear, move and leave, and at times a character that flashes up.

A clip is fully determined by an integer seed. As with scenes, seeds below `scenes.TEST_SEED_START` are for training,
seeds from there on for testing, so the two sets never share a clip. Positions and lengths are in scene pixels
(0 .. `scenes.SIZE`), which are half as large as the pixels of a frame.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image, ImageDraw

from vtprune.evals.scenes import (
    BACKGROUNDS,
    CHARACTERS,
    COLOURS,
    SHAPES,
    SIZE,
    Scene,
    SceneObject,
    draw_background,
    draw_object,
)

CLIP_SIZE = 112
"""Side of a frame in pixels."""

FRAMES = (8, 16)
"""Smallest and largest number of frames."""

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""The step across and down behind every direction's word."""

LEAST_TRAVEL = 60.0
"""How far, in scene pixels, everything that moves goes at least: more than a quarter of the picture."""

_RADIUS = (24.0, 36.0)
_GLYPH_RADIUS = {"circle": 27.0, "square": 26.0, "triangle": 35.0, "diamond": 31.0, "star": 35.0, "cross": 31.0}
_GLYPH_HEIGHT = 28.0
_CARD_RADIUS, _CARD_GLYPH_HEIGHT = 26.0, 38.0
_CARD_EDGE = (20, 20, 20)
_MOVING = 0.75
_STAGGERED = 0.7
_STAYS_TO_THE_END = 0.6
_NO_NEEDLE, _NEEDLE_ON_CARD = 0.35, 0.25


@dataclass(frozen=True)
class Track:
    """What one object does in a clip.

    Attributes:
        start: The object where it appears.
        direction: One of `DIRECTIONS`, or None if it stays where it is.
        speed: Scene pixels per frame.
        first: The frame in which it appears.
        end: The frame from which on it is gone; the number of frames if it never leaves.
    """

    start: SceneObject
    direction: str | None
    speed: float
    first: int
    end: int

    @property
    def name(self) -> str:
        """The words that single it out in its clip, as in "red star"."""
        return f"{self.start.colour} {self.start.shape}"

    def at(self, frame: int) -> SceneObject | None:
        """The object as it is in a frame; None while it is not there."""
        if not self.first <= frame < self.end:
            return None
        x, y = self.centre(frame)
        return dataclasses.replace(self.start, x=x, y=y)

    def centre(self, frame: int) -> tuple[float, float]:
        """Where its centre is in a frame in which it is there: across and down, in scene pixels."""
        across, down = DIRECTIONS[self.direction] if self.direction else (0, 0)
        gone = self.speed * (frame - self.first)
        return self.start.x + across * gone, self.start.y + down * gone


@dataclass(frozen=True)
class Needle:
    """A character that is shown in one or two frames only.

    Attributes:
        character: One of `scenes.CHARACTERS`.
        first: The first frame that shows it.
        end: The frame from which on it is gone.
        track: Which of the clip's tracks carries it; None if it is on a card of its own.
        card: The card, or None.
    """

    character: str
    first: int
    end: int
    track: int | None
    card: SceneObject | None


@dataclass(frozen=True)
class Clip:
    """A clip: its seed, number of frames, kind of background, tracks (no two look alike or meet), and needle."""

    seed: int
    frames: int
    background: str
    tracks: tuple[Track, ...]
    needle: Needle | None


def make_clip(seed: int) -> Clip:
    """Compose the clip of a seed; the same seed, any non-negative integer, always gives the same one."""
    rng = np.random.default_rng((seed, 2))
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    frames = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    names = rng.choice(len(COLOURS) * len(SHAPES), size=rng.integers(1, 5), replace=False)
    lives = _lives(rng, frames, len(names))
    tracks: list[Track] | None = None
    # Now and then the first objects leave the others no way.
    while tracks is None:
        tracks = _tracks(rng, lives, [(list(COLOURS)[n // len(SHAPES)], SHAPES[n % len(SHAPES)]) for n in names])
    return Clip(seed, frames, background, tuple(tracks), _needle(rng, frames, tracks))


def draw_clip(clip: Clip) -> np.ndarray:
    """Draw all frames of a clip: an array of shape (frames, 112, 112, 3), uint8, RGB."""
    # Drawn twice as large and averaged: outlines are smooth, and half a pixel's way can be seen.
    ground = Image.fromarray(draw_background(Scene(clip.seed, clip.background, ())))
    scale = ground.width / SIZE
    frames = np.empty((clip.frames, CLIP_SIZE, CLIP_SIZE, 3), dtype=np.uint8)
    for number in range(clip.frames):
        canvas = ground.copy()
        draw = ImageDraw.Draw(canvas)
        needle = clip.needle if clip.needle is not None and clip.needle.first <= number < clip.needle.end else None
        for place, track in enumerate(clip.tracks):
            obj = track.at(number)
            if obj is None:
                continue
            if needle is not None and needle.track == place:
                obj = dataclasses.replace(obj, character=needle.character)
            draw_object(draw, obj, scale)
        if needle is not None and needle.card is not None:
            x, y, side = needle.card.x, needle.card.y, needle.card.radius + 2
            box = (x - side, y - side, x + side, y + side)
            draw.rectangle(tuple(scale * edge for edge in box), fill=_CARD_EDGE)
            draw_object(draw, needle.card, scale)
        frames[number] = np.asarray(canvas.reduce(canvas.width // CLIP_SIZE))
    return frames


def write_clip(frames: np.ndarray, path: str | os.PathLike[str], fps: float = 4.0) -> None:
    """Write frames as an MP4 file (H.264, yuv420p, of high quality), over what is there.

    Args:
        frames: (frames, height, width, 3), uint8, RGB; height and width even.
        path: The file.
        fps: Frames per second.

    Raises:
        ValueError: If there are no frames, they are of another kind, or `fps` is not above 0.
        ImportError: If PyAV, which comes with `vtprune[dev]`, is missing.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 of shape (frames, height, width, 3), got {frames.dtype} {frames.shape}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"height and width must be even for yuv420p, got {frames.shape[1]} x {frames.shape[2]}")
    if not 0 < fps < 1000:
        raise ValueError(f"fps must be above 0 and below 1000, got {fps}")
    import av

    with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        # A tune for still, grainy pictures: a frame in which something flashes up is as sharp as any other.
        options = {"crf": "14", "preset": "slow", "bf": "0", "tune": "stillimage"}
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())


def _lives(rng: np.random.Generator, frames: int, number: int) -> list[tuple[int, int]]:
    """First frame and end of every object; all are there for two frames or longer."""
    if rng.random() < _STAGGERED:
        # No two within two frames of one another: models that look at pairs of frames can tell them apart, too.
        firsts = np.sort(rng.choice(frames - number, size=number, replace=False)) + np.arange(number)
    else:
        firsts = rng.integers(0, frames - 1, size=number)
    ends = [frames if rng.random() < _STAYS_TO_THE_END else int(rng.integers(f + 2, frames + 1)) for f in firsts]
    lives = [(int(first), end) for first, end in zip(firsts, ends, strict=True)]
    return [lives[place] for place in rng.permutation(number)]


def _tracks(rng: np.random.Generator, lives: list[tuple[int, int]], names: list[tuple[str, str]]) -> list[Track] | None:
    """Tracks that do not meet, or None if there was no room for one."""
    placed: list[Track] = []
    for (first, end), (colour, shape) in zip(lives, names, strict=True):
        for _ in range(30):
            track = _track(rng, first, end, colour, shape)
            if not any(_meet(track, other) for other in placed):
                placed.append(track)
                break
        else:
            return None
    return placed


def _track(rng: np.random.Generator, first: int, end: int, colour: str, shape: str) -> Track:
    # Every object can carry a character, so that one that does is not known by its size.
    radius = float(rng.uniform(max(_RADIUS[0], _GLYPH_RADIUS[shape]), _RADIUS[1]))
    low, high = radius + 2, SIZE - radius - 2
    direction, speed, travel = None, 0.0, 0.0
    if end - first >= 4 and rng.random() < _MOVING:
        direction = list(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
        travel = float(rng.uniform(LEAST_TRAVEL, high - low))
        speed = travel / (end - first - 1)
    across, down = DIRECTIONS[direction] if direction else (0, 0)
    # Where it may start, so that it ends up inside the picture.
    x = float(rng.uniform(low - min(across, 0) * travel, high - max(across, 0) * travel))
    y = float(rng.uniform(low - min(down, 0) * travel, high - max(down, 0) * travel))
    rgb = np.clip(np.array(COLOURS[colour]) + rng.integers(-12, 13, size=3), 0, 255)
    tint = (int(rgb[0]), int(rgb[1]), int(rgb[2]))
    angle = float(rng.uniform(-8, 8))
    obj = SceneObject(shape, colour, tint, x, y, radius, angle, character=None, glyph_height=_GLYPH_HEIGHT)
    return Track(obj, direction, speed, first, end)


def _meet(one: Track, two: Track) -> bool:
    shared = range(max(one.first, two.first), min(one.end, two.end))
    room = one.start.radius + two.start.radius
    return any(_touch(one.centre(frame), two.centre(frame), room) for frame in shared)


def _touch(a: tuple[float, float], b: tuple[float, float], room: float) -> bool:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= room + 4


def _needle(rng: np.random.Generator, frames: int, tracks: list[Track]) -> Needle | None:
    chance = rng.random()
    if chance < _NO_NEEDLE:
        return None
    character, length = str(rng.choice(CHARACTERS)), int(rng.integers(1, 3))
    if chance < _NO_NEEDLE + _NEEDLE_ON_CARD:
        for _ in range(40):
            first = int(rng.integers(0, frames - length + 1))
            card = _card(rng, character)
            covered = (
                _touch((card.x, card.y), track.centre(frame), card.radius + track.start.radius)
                for track in tracks
                for frame in range(max(first, track.first), min(first + length, track.end))
            )
            if not any(covered):
                return Needle(character, first, first + length, None, card)
    place = int(rng.integers(len(tracks)))
    first = int(rng.integers(tracks[place].first, tracks[place].end - length + 1))
    return Needle(character, first, first + length, place, None)


def _card(rng: np.random.Generator, character: str) -> SceneObject:
    x, y = rng.uniform(_CARD_RADIUS + 4, SIZE - _CARD_RADIUS - 4, size=2)
    white = COLOURS["white"]
    return SceneObject("square", "white", white, float(x), float(y), _CARD_RADIUS, 0.0, character, _CARD_GLYPH_HEIGHT)
