"""Any picture a person has becomes upright 8-bit RGB; anything else a plain error that names the file."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vtprune.images import MAX_PIXELS, MAX_SIDE, load_image

HALVES = np.zeros((20, 30), np.uint8)
HALVES[:, 15:] = 255


def pixel(picture, x, y):
    return picture.getpixel((x, y))


def close(picture, x, y, colour, tolerance=12):
    return max(abs(a - b) for a, b in zip(pixel(picture, x, y), colour, strict=True)) <= tolerance


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp", "a.tiff", "a.jp2", "a.ppm", "a.ico", "a.tga"]
)
def test_formats(tmp_path, name):
    Image.new("RGB", (32, 32), (200, 30, 60)).save(tmp_path / name)
    picture = load_image(tmp_path / name)
    assert picture.mode == "RGB"
    assert type(picture) is Image.Image
    assert close(picture, 16, 16, (200, 30, 60))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, name, orientation):
    """A picture whose upper left quarter is white, stored turned and flipped, comes out with it at the upper left."""
    upright = Image.new("RGB", (40, 24))
    upright.paste("white", (0, 0, 20, 12))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that stores what the tag then takes back
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / name, exif=exif)
    picture = load_image(tmp_path / name)
    assert picture.size == (40, 24)
    assert close(picture, 5, 5, (255, 255, 255))
    assert close(picture, 35, 5, (0, 0, 0))
    assert close(picture, 5, 20, (0, 0, 0))


def test_broken_exif_is_ignored(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff\xff")
    assert close(load_image(tmp_path / "a.jpg"), 4, 4, (255, 0, 0))


@pytest.mark.parametrize(("mode", "name"), [("RGBA", "a.png"), ("RGBA", "a.webp"), ("LA", "a.png"), ("RGBA", "a.tiff")])
def test_transparency_turns_white(tmp_path, mode, name):
    picture = Image.new(mode, (20, 20), (0,) * len(mode))
    picture.paste((0,) * (len(mode) - 1) + (255,), (0, 0, 10, 20))
    picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    loaded = load_image(tmp_path / name)
    assert pixel(loaded, 2, 2) == (0, 0, 0)
    assert pixel(loaded, 17, 2) == (255, 255, 255)


def test_half_transparent_is_mixed_with_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert close(load_image(tmp_path / "a.png"), 1, 1, (127, 127, 127), tolerance=1)


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
@pytest.mark.parametrize("transparent", [False, True])
def test_palette(tmp_path, name, transparent):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 250, 20, 20, 20, 250, 20])
    picture.putpixel((0, 0), 2)
    picture.save(tmp_path / name, **({"transparency": 1} if transparent else {}))
    loaded = load_image(tmp_path / name)
    assert pixel(loaded, 0, 0) == (20, 250, 20)
    assert pixel(loaded, 4, 4) == ((255, 255, 255) if transparent else (250, 20, 20))


@pytest.mark.parametrize(("mode", "key", "fill"), [("L", 7, 7), ("RGB", (7, 8, 9), (7, 8, 9))])
def test_transparent_colour_of_png(tmp_path, mode, key, fill):
    Image.new(mode, (4, 4), fill).save(tmp_path / "a.png", transparency=key)
    assert pixel(load_image(tmp_path / "a.png"), 1, 1) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes(tmp_path, mode):
    # Pillow 12 does not read the raw YCbCr files that it writes.
    compression = "tiff_lzw" if mode == "YCbCr" else None
    Image.fromarray(HALVES).convert("RGB").convert(mode).save(tmp_path / "a.tiff", compression=compression)
    loaded = load_image(tmp_path / "a.tiff")
    assert close(loaded, 2, 2, (0, 0, 0))
    assert close(loaded, 27, 2, (255, 255, 255))


def test_cmyk_jpeg(tmp_path):
    Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK").save(tmp_path / "a.jpg")
    assert close(load_image(tmp_path / "a.jpg"), 8, 8, (255, 0, 0), tolerance=20)


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_grey_is_scaled_and_not_cut_off(tmp_path, name):
    values = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(values).save(tmp_path / name)
    loaded = np.asarray(load_image(tmp_path / name))
    assert loaded[0, :, 0].tolist() == list(range(256))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0.0, np.inf]], np.float32), [0, 0, 255]),
        (np.array([[np.nan, np.nan]], np.float32), [0, 0]),
        (np.array([[-3e38, 0, 0.5, 1, 3e38]], np.float32), [0, 0, 128, 255, 255]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 1_000_000, 2_000_000]], np.int32), [0, 128, 255]),
        (np.array([[-10, 0, 10]], np.int32), [0, 128, 255]),
    ],
)
def test_wide_grey_values(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert np.asarray(load_image(tmp_path / "a.tiff"))[0, :, 0].tolist() == expected


def test_first_frame_of_an_animation(tmp_path):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for name in ("a.gif", "a.webp", "a.png", "a.tiff"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert close(load_image(tmp_path / name), 4, 4, (255, 0, 0))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_tiny(tmp_path, size):
    Image.new("RGB", size, "green").save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").size == size


@pytest.mark.parametrize(
    ("name", "size"), [("a.jpg", (20000, 20000)), ("a.jpg", (30000, 500)), ("a.png", (9000, 1000))]
)
def test_large_pictures_are_reduced(tmp_path, name, size):
    Image.new("L", size, 90).save(tmp_path / name, compress_level=1)
    before = Image.MAX_IMAGE_PIXELS
    picture = load_image(tmp_path / name)
    assert before == Image.MAX_IMAGE_PIXELS
    assert max(picture.size) == MAX_SIDE
    assert abs(picture.width / picture.height / (size[0] / size[1]) - 1) < 0.01
    assert close(picture, 20, 20, (90, 90, 90), tolerance=2)


def test_a_bomb_is_refused(tmp_path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match=f"40000 x 40000 pixels; at most {MAX_PIXELS // 1_000_000} million"):
        load_image(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.bmp", "a.tiff", "a.webp"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_cut_short(tmp_path, name, share):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: max(1, int(share * len(content)))])
    with pytest.raises(ValueError, match=name):
        load_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.bmp", "a.tiff", "a.webp"])
def test_damaged_bytes_never_raise_anything_else(tmp_path, name):
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(tmp_path / name)
    content = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        damaged = content.copy()
        damaged[rng.integers(0, len(content), 6)] = rng.integers(0, 256, 6)
        (tmp_path / name).write_bytes(damaged.tobytes())
        with contextlib.suppress(ValueError):
            assert load_image(tmp_path / name).mode == "RGB"


def test_no_pictures(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(FileNotFoundError, match="inside"):
        load_image(tmp_path / "text.png" / "inside.png")
    with pytest.raises(FileNotFoundError, match="cannot be found"):
        load_image("x" * 5000)
    with pytest.raises(FileNotFoundError, match="cannot be found"):
        load_image("null\0byte.png")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load_image(tmp_path)
    for name, said in (
        ("empty.png", "empty file"),
        ("text.png", "no picture"),
        ("page.eps", "no picture"),
        ("phone.heic", "JPEG or PNG"),
        ("pipe.png", "no regular file"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value)
