"""The integrations find their way around the full-size architectures; the models are on the meta device."""

from __future__ import annotations

import functools

import pytest

from tests.published.pictures import ask, picture, placeholders, processor, video
from vtprune import published
from vtprune.integrations import EncoderCall, integrate
from vtprune.published import MODELS
from vtprune.published.build import build

# Family; vision blocks that reach the decoder, and all; decoder layers; width of the encoder's and of the decoder's
# attention; [CLS]; patches per side of a token.
EXPECTED = {
    "llava-1.5-7b": ("llava", 23, 24, 32, 1024, 4096, True, 1),
    "llava-v1.6-mistral-7b": ("llava_next", 23, 24, 32, 1024, 4096, True, 1),
    "llava-onevision-qwen2-7b": ("llava_onevision", 26, 26, 28, 1152, 3584, False, 1),
    "qwen2-vl-7b": ("qwen2_vl", 32, 32, 28, 1280, 3584, False, 2),
    "qwen2.5-vl-7b": ("qwen2_5_vl", 32, 32, 28, 1280, 3584, False, 2),
    "qwen3-vl-8b": ("qwen3_vl", 27, 27, 36, 1152, 4096, False, 2),
    "internvl3-8b": ("internvl", 24, 24, 28, 1024, 3584, True, 2),
}
TOWER_INPUTS = {
    "image": ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}


@functools.cache
def found(name):
    return integrate(build(name, device="meta"))


def layouts(name, kind, thing):
    inputs = ask(name, kind, thing)
    call = EncoderCall(kind, {key: inputs[key] for key in TOWER_INPUTS[kind] if key in inputs})
    return inputs, call, found(name).layouts(call)


def test_every_architecture_is_expected():
    assert set(EXPECTED) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_parts_are_found(name):
    one = found(name)
    width = one.decoder_width(one.decoder_layers[0])
    got = (one.family, len(one.encoder_blocks), len(one.all_encoder_layers), len(one.decoder_layers))
    assert (*got, one.encoder_width, width, one.has_cls, getattr(one, "merge", 1)) == EXPECTED[name]
    assert one.model.config.model_type in one.model_types
    assert one.position_axes == (3 if name.startswith("qwen") else 1)
    assert one.encoder_scale(one.encoder_blocks[0]) == pytest.approx(
        (one.encoder_width / _encoder_heads(one.model.config.vision_config)) ** -0.5
    )
    assert one.decoder_scale(one.decoder_layers[0]) == pytest.approx(128**-0.5)


@pytest.mark.parametrize("size", [(600, 300), (200, 500), (384, 384)])
@pytest.mark.parametrize("name", MODELS)
def test_layout_has_a_slot_for_every_placeholder(name, size):
    inputs, call, units = layouts(name, "image", picture(*size))
    expected = placeholders(published.config(name, small=True), inputs)
    assert sum(unit.slots for unit in units) == expected
    assert sum(found(name).encoder_lengths(0, call)) == _patches(name, inputs)


@pytest.mark.parametrize("name", ["llava-onevision-qwen2-7b", "qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"])
def test_layout_of_a_video_has_a_slot_for_every_placeholder(name):
    assert "video" in found(name).modalities
    inputs, _, units = layouts(name, "video", video(64))
    token = processor(name).tokenizer.convert_tokens_to_ids(processor(name).video_token)
    assert sum(unit.slots for unit in units) == int((inputs["input_ids"] == token).sum())


def test_qwen2_5_scores_at_a_block_with_full_attention():
    assert found("qwen2.5-vl-7b").scored_block == 31


def _encoder_heads(vision):
    return getattr(vision, "num_heads", None) or vision.num_attention_heads


def _patches(name, inputs):
    """Patches, and [CLS] tokens, that the vision tower is given."""
    if "image_grid_thw" in inputs:
        return int(inputs["image_grid_thw"].prod())
    vision = published.config(name).vision_config
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    tiles = inputs["pixel_values"].flatten(0, -4).shape[0]
    return tiles * ((side // patch) ** 2 + int(found(name).has_cls))
