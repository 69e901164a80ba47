"""Tokens per picture and video: what the processors write, against the published rules worked out by other formulas."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, sqrt

import pytest

from tests.published.pictures import FRAMES, ask, picture, placeholders, processor, video
from vtprune import published
from vtprune.published.llava import PINPOINTS as NEXT_PINPOINTS
from vtprune.published.llava_onevision import PINPOINTS as ONEVISION_PINPOINTS

SIZES = [(640, 480), (900, 300), (300, 900), (672, 672), (200, 200), (1024, 899)]  # (width, height), in pixels


def count(name, size):
    return placeholders(published.config(name, small=True), ask(name, "image", picture(*size)))


def best_pinpoint(width, height, pinpoints):
    """The canvas that keeps most of the picture's pixels; among equals the one that wastes least."""

    def merit(canvas):
        rows, columns = canvas
        scale = min(Fraction(columns, width), Fraction(rows, height))
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - rows * columns

    return max(pinpoints, key=merit)


def without_padding(width, height, rows, columns):
    """(rows, columns) of a grid's patches that are left when the borders of a picture fitted into it are cut off."""
    if Fraction(width, height) > Fraction(columns, rows):
        return rows - 2 * ((rows - floor(Fraction(height * columns, width))) // 2), columns
    return rows, columns - 2 * ((columns - floor(Fraction(width * rows, height))) // 2)


@pytest.mark.parametrize("size", SIZES)
def test_llava_has_576(size):
    assert count("llava-1.5-7b", size) == 576


@pytest.mark.parametrize("size", SIZES)
def test_llava_next_unpads_tiles_and_ends_rows(size):
    height, width = best_pinpoint(*size, NEXT_PINPOINTS)
    rows, columns = without_padding(*size, height // 14, width // 14)
    assert count("llava-v1.6-mistral-7b", size) == 576 + rows * (columns + 1)


@pytest.mark.parametrize(
    ("size", "tokens"), [((672, 672), 2880 + 48), ((672, 336), 3 * 576 + 24), ((336, 672), 3 * 576 + 48)]
)
def test_llava_next_by_hand(size, tokens):
    assert count("llava-v1.6-mistral-7b", size) == tokens


@pytest.mark.parametrize("size", [*SIZES, (2304, 1152)])
def test_llava_onevision_shrinks_beyond_nine_tiles(size):
    height, width = best_pinpoint(*size, ONEVISION_PINPOINTS)
    rows, columns = without_padding(*size, height // 384 * 27, width // 384 * 27)
    shrink = sqrt(rows * columns / (9 * 729))
    if shrink > 1.1:
        rows, columns = int(rows // shrink), int(columns // shrink)
    assert count("llava-onevision-qwen2-7b", size) == 729 + rows * (columns + 1)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((384, 384), 729 + 729 + 27),
        ((768, 768), 729 + 54 * 54 + 54),
        ((1152, 384), 729 + 27 * 81 + 27),
        ((2304, 2304), 729 + 81 * 81 + 81),  # 36 tiles, shrunk to nine
    ],
)
def test_llava_onevision_by_hand(size, tokens):
    assert count("llava-onevision-qwen2-7b", size) == tokens


@pytest.mark.parametrize("name", ["qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"])
@pytest.mark.parametrize("size", SIZES)
def test_qwen_has_one_token_per_square(name, size):
    side, least = (32, 64) if name == "qwen3-vl-8b" else (28, 4)
    columns, rows = (round(length / side) for length in size)
    if rows * columns < least:
        stretch = sqrt(least * side * side / (size[0] * size[1]))
        columns, rows = (ceil(length * stretch / side) for length in size)
    assert count(name, size) == rows * columns


@pytest.mark.parametrize(("name", "side"), [("qwen2-vl-7b", 28), ("qwen2.5-vl-7b", 28), ("qwen3-vl-8b", 32)])
def test_qwen_stops_at_16384(name, side):
    tokens = processor(name)._get_num_multimodal_tokens(image_sizes=[[200 * side, 200 * side], [20, 20]])
    assert tokens.num_image_tokens == [128 * 128, 64 if side == 32 else 4]


@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        ((448, 448), 1),
        ((200, 200), 1),
        ((896, 448), 2 + 1),
        ((448, 1344), 3 + 1),
        ((1000, 1000), 9 + 1),  # as many tiles as are worth it: 16 would be more than 12
        ((640, 480), 12 + 1),  # 4:3, and up to twelve tiles
        ((1344, 896), 6 + 1),
    ],
)
def test_internvl_has_256_per_tile(size, tiles):
    assert count("internvl3-8b", size) == 256 * tiles


@pytest.mark.parametrize(
    ("name", "side", "tokens"),
    [
        ("llava-onevision-qwen2-7b", 100, FRAMES * 196 + 1),  # frames pooled from 27 to 14 a side, one end of a row
        ("qwen2-vl-7b", 112, FRAMES // 2 * 16),
        ("qwen2.5-vl-7b", 112, FRAMES // 2 * 16),
        ("qwen3-vl-8b", 128, FRAMES // 2 * 16),
        ("internvl3-8b", 100, FRAMES * 256),
    ],
)
def test_tokens_per_video(name, side, tokens):
    inputs = ask(name, "video", video(side))
    assert placeholders(published.config(name, small=True), inputs, "video") == tokens


def test_full_size_processors_are_set_up_alike():
    for name in published.MODELS:
        full, small = published.processor(name), processor(name)
        for part in ("image_processor", "video_processor"):
            if hasattr(full, part):
                assert getattr(full, part).to_dict() == getattr(small, part).to_dict()
        assert full.chat_template == small.chat_template
