"""Reading any picture that a person has as 8-bit RGB."""

from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from vtprune.files import check_file, reason

MAX_PIXELS = 500_000_000
"""A file that claims more pixels than this is refused: it would need gigabytes of memory before it could be reduced."""

MAX_SIDE = 4096
"""Longer side, in pixels, to which larger pictures are reduced: more than any supported model looks at."""

# No EPS, PDF or WMF: reading those runs other programs.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA", "HEIF")

# What Pillow's readers raise on damaged files.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_pillow_limit = threading.Lock()


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture as 8-bit RGB, upright, at most `MAX_SIDE` pixels long.

    Of animations and multi-page files it is the first picture. Transparent parts turn white, 16-bit and floating-point
    values are scaled to 8 bits, and an EXIF orientation is carried out.

    Args:
        path: The picture's file. JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM, ICO or TGA.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
        PermissionError: It may not be read.
        ValueError: It is empty, no picture, damaged, or has more than `MAX_PIXELS` pixels.
    """
    path = Path(path)
    check_file(path, "picture")
    image = _open(path)
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            limit = f"at most {MAX_PIXELS // 1_000_000} million are read"
            raise ValueError(f"picture {str(path)!r} has {width} x {height} pixels; {limit}.")
        try:
            orientation = _orientation(image)
            # Lets the JPEG decoder skip detail that would be thrown away below.
            image.draft(None, _reduced(image.size))
            image.load()
            # TIFF files are turned by Pillow itself while they load.
            orientation = 1 if image.format == "TIFF" else orientation
            picture = _eight_bits(image)
        except _DAMAGED as error:
            raise ValueError(f"picture {str(path)!r} is truncated or damaged: {reason(error)}.") from error
    if max(picture.size) > MAX_SIDE:
        picture = picture.resize(_reduced(picture.size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    picture = _on_white(picture)
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def _open(path: Path) -> Image.Image:
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        # Pillow's own limit is a process-wide setting below ours, and opening reads no more than the header.
        with _pillow_limit, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(path, formats=formats)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except Image.UnidentifiedImageError:
        hint = "; save HEIC pictures as JPEG or PNG" if _is_heic(path) else ""
        raise ValueError(f"{str(path)!r} is no picture in a format that can be read{hint}.") from None
    except PermissionError:
        raise PermissionError(f"picture {str(path)!r} may not be read.") from None
    except _DAMAGED as error:
        raise ValueError(f"picture {str(path)!r} is truncated or damaged: {reason(error)}.") from error


def _is_heic(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGED:  # a broken EXIF block does not spoil the picture
        return 1


def _reduced(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, MAX_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture as L, LA, RGB or RGBA."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scale(np.asarray(image)))
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _scale(values: np.ndarray) -> np.ndarray:
    """Grey values of any range as 8 bits.

    16-bit values are divided by 257. Wider types say nothing of their range: it is taken to be 0 to 1 (floats only),
    0 to 255 or 0 to 65535, the first that holds all values, or else from the smallest to the largest of them.
    """
    if values.dtype.itemsize == 2 and values.dtype.kind == "u":
        return np.rint(np.arange(65536) / 257).astype(np.uint8)[values]
    is_float = values.dtype.kind == "f"
    values = values.astype(np.float32)
    finite = np.abs(values) < 1e30  # beyond that lie infinities and what stands for missing values
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    ranges = (1.0, 255.0, 65535.0) if is_float else (255.0, 65535.0)
    top = next((top for top in ranges if high <= top), None) if low >= 0 else None
    low, high = (0.0, top) if top is not None else (low, high)
    inside = np.nan_to_num(values, nan=low).clip(low, high)
    return np.rint((inside - low) / max(high - low, 1e-30) * 255).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
