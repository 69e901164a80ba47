"""Reading frames of any video that a person has, as 8-bit RGB, without holding the whole of it."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from vtprune.files import check_file

DEFAULT_FRAMES = 32
"""How many frames are taken at most where neither their number nor their rate is asked for."""

MAX_PIXELS = 500_000_000
"""Sampled frames of more pixels in all than this (1.5 GB) are refused."""

_THREADS = 2
_SLACK = 5e-4  # seconds: times are known in single precision only
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")
_stderr = threading.Lock()


@dataclass(frozen=True, eq=False)
class Video:
    """Sampled frames of a video, upright, and where they come from.

    Attributes:
        frames: (frames, height, width, 3), uint8, RGB.
        indices: Their numbers in the file, from 0.
        times: When they are shown, in seconds after the first frame of the file.
        fps: Frames per second of the file, on average.
        total_frames: Frames of the file.
        duration: Length of the file in seconds.
    """

    frames: np.ndarray
    indices: tuple[int, ...]
    times: tuple[float, ...]
    fps: float
    total_frames: int
    duration: float

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of a frame in pixels."""
        return self.frames.shape[2], self.frames.shape[1]

    def to_dict(self) -> dict[str, Any]:
        """All but the pixels, ready for JSON."""
        return {
            "indices": list(self.indices),
            "times": list(self.times),
            "fps": self.fps,
            "total_frames": self.total_frames,
            "duration": self.duration,
        }


def load_video(path: str | os.PathLike[str], *, frames: int | None = None, fps: float | None = None) -> Video:
    """Read frames of a video file.

    With `frames` that many are taken, evenly spaced from the first to the last frame of the file (a single one is the
    middle one), or all of them if there are no more. With `fps` it is the frames that are on screen every 1 / fps
    seconds, none of them twice; given both, `frames` evenly spaced ones of these if there are more. By default it is as
    with `frames` = 32.

    Args:
        path: The video's file, in any format and codec that decord knows.
        frames: How many frames.
        fps: Frames per second of the video.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
        PermissionError: It may not be read.
        ImportError: decord is missing.
        ValueError: `frames` or `fps` is out of range; the file is a URL, empty, no video, without pictures, truncated
            or damaged; or the frames asked for have more than `MAX_PIXELS` pixels.
    """
    check_sampling(frames, fps)
    if _URL.match(os.fsdecode(path)):
        raise ValueError(f"video {os.fsdecode(path)!r} is a URL; download it and give the file.")
    path = Path(os.fsdecode(path))
    check_file(path, "video")
    _check_readable(path)
    with _silent_stderr():
        return _load(_decord(), path, frames, fps)


def _load(decord: ModuleType, path: Path, frames: int | None, fps: float | None) -> Video:
    reader = _open(decord, path)
    try:
        starts, duration, rate = _timing(reader)
        indices = _sample(starts, duration, frames, fps)
        pixels = _read(reader, indices, path)
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, StopIteration) as error:
        traceback.clear_frames(error.__traceback__)
        raise ValueError(f"video {str(path)!r} is truncated or damaged: some frames cannot be decoded.") from None
    finally:
        del reader  # an error that held it would let its threads write when nobody silences them any more
    times = tuple(float(starts[index]) for index in indices)
    return Video(pixels, tuple(indices), times, rate, len(starts), duration)


def check_sampling(frames: int | None, fps: float | None) -> None:
    """Check what `load_video` is to be given.

    Raises:
        ValueError: `frames` or `fps` is out of range.
    """
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, Integral) or frames < 1):
        raise ValueError(f"frames must be a whole number >= 1, got {frames!r}.")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, Real) or not 0 < fps < math.inf):
        raise ValueError(f"fps must be a number above 0, got {fps!r}.")


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except PermissionError:
        raise PermissionError(f"video {str(path)!r} may not be read.") from None


def _decord() -> ModuleType:
    try:
        import decord
    except (ImportError, OSError) as error:
        raise ImportError(
            f"reading videos needs decord, which cannot be imported ({str(error).splitlines()[0]}); "
            "install it with: pip install decord (Linux and Windows on x86-64), or pip install eva-decord (macOS)."
        ) from None
    return decord


def _open(decord: ModuleType, path: Path) -> Any:
    try:
        return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=_THREADS)
    except (decord.DECORDError, RuntimeError, AssertionError) as error:
        raise ValueError(f"video {str(path)!r} {_why_not(path, str(error))}.") from None


def _why_not(path: Path, said: str) -> str:
    """What is wrong with a file that decord does not open."""
    with path.open("rb") as file:
        head = file.read(12)
    if _is_picture(path):
        return "is a picture; use --image, or vtprune.images.load_image"
    if "cannot find video stream" in said:
        return "holds no pictures that can be read: only sound, no frames, or an unknown codec"
    if head[4:8] in (b"ftyp", b"moov", b"mdat") or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF"):
        return "is truncated or damaged"
    return "is no video in a format that can be read"


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _timing(reader: Any) -> tuple[np.ndarray, float, float]:
    """When each frame is shown and when the last one ends, in seconds after the first; frames per second."""
    spans = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)
    starts = np.maximum.accumulate(spans[:, 0] - spans[0, 0])
    # A file that tells no durations ends when its last frame comes.
    duration = max(float(spans[-1, 1] - spans[0, 0]), float(starts[-1]))
    rate = float(reader.get_avg_fps())
    even = np.arange(len(starts)) / rate if math.isfinite(rate) and rate > 0 else starts + math.inf
    if np.allclose(starts, even, rtol=1e-6, atol=1e-4):  # times are given in single precision
        return even, len(starts) / rate, rate
    # Files of varying frame rate may tell a rate of their own making.
    return starts.round(4), round(duration, 4), len(starts) / duration if duration > 0 else 1.0


def _sample(starts: np.ndarray, end: float, frames: int | None, fps: float | None) -> list[int]:
    chosen = np.arange(len(starts))
    if fps is not None:
        # In ticks, a frame is on screen from `first` to `last`; it is taken if a whole number lies between.
        edges = (np.append(starts, end) - _SLACK) * min(fps, 1e6)
        chosen = np.flatnonzero((np.ceil(edges[:-1]) < edges[1:]) | (chosen == 0))
    most = frames if frames is not None else (DEFAULT_FRAMES if fps is None else len(chosen))
    return [int(chosen[place]) for place in _evenly(len(chosen), most)]


def _evenly(total: int, most: int) -> list[int]:
    """`most` different numbers below `total`, evenly spaced from the first to the last; all if there are no more."""
    if most >= total:
        return list(range(total))
    if most == 1:
        return [(total - 1) // 2]
    gaps = most - 1
    return [(2 * place * (total - 1) + gaps) // (2 * gaps) for place in range(most)]


def _read(reader: Any, indices: list[int], path: Path) -> np.ndarray:
    pixels: np.ndarray | None = None
    for place, index in enumerate(indices):
        frame = reader[index]
        # A process may have told decord to give out tensors.
        values = frame.asnumpy() if hasattr(frame, "asnumpy") else np.asarray(frame)
        if pixels is None:
            height, width = values.shape[:2]
            if len(indices) * height * width > MAX_PIXELS:
                raise ValueError(
                    f"video {str(path)!r}: {len(indices)} frames of {width} x {height} pixels are too many, at most "
                    f"{MAX_PIXELS // 1_000_000} million pixels are read; take fewer frames."
                )
            pixels = np.empty((len(indices), height, width, 3), dtype=np.uint8)
        pixels[place] = values
    if pixels is None:
        raise ValueError(f"video {str(path)!r} holds no frames.")
    return pixels


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep what C code writes about a damaged file from the terminal: the error says it in one line."""
    with _stderr:
        try:
            sys.stderr.flush()
            saved = os.dup(2)
        except (OSError, ValueError, AttributeError):  # a process without a standard error
            yield
            return
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
