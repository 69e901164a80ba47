"""The small models run: their features fit the prompts, they answer, and they are laid out like the full ones."""

from __future__ import annotations

import functools
from itertools import chain

import pytest
import torch

from tests.published.pictures import ask, picture, placeholders, processor, video
from vtprune.published import MODELS
from vtprune.published.build import build

NAMES = list(MODELS)
PICTURES = {"wide": (600, 300), "tall": (200, 500), "square": (384, 384)}
WITH_VIDEOS = ["llava-onevision-qwen2-7b", "qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b", "internvl3-8b"]


@functools.cache
def small(name):
    torch.set_num_threads(1)
    return build(name, small=True)


def features(model, inputs):
    """The features of all pictures, (tokens, width)."""
    names = ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images")
    with torch.inference_mode():
        made = model.get_image_features(**{name: inputs[name] for name in names if name in inputs}).pooler_output
    return torch.cat([part.flatten(0, -2) for part in made])


@pytest.mark.parametrize("shape", PICTURES)
@pytest.mark.parametrize("name", NAMES)
def test_as_many_placeholders_as_features(name, shape):
    inputs = ask(name, "image", picture(*PICTURES[shape]))
    made = features(small(name), inputs)
    assert placeholders(small(name).config, inputs) == len(made)
    assert made.shape[1] == small(name).config.get_text_config().hidden_size
    assert made.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_answers_a_question_about_a_picture(name):
    model, inputs = small(name), ask(name, "image", picture(300, 300))
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=2, output_logits=True, return_dict_in_generate=True)
    assert all(logits.isfinite().all() for logits in made.logits)
    answer = made.sequences[0, inputs["input_ids"].shape[1] :]
    assert 1 <= len(answer) <= 2
    assert processor(name).decode(answer, skip_special_tokens=True).isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_answers_depend_on_the_picture(name):
    model = small(name)
    with torch.inference_mode():
        first, second = (
            model(**ask(name, "image", image), logits_to_keep=1).logits
            for image in (picture(64, 64), picture(64, 64).rotate(90))
        )
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("name", WITH_VIDEOS)
def test_videos_fit_their_prompts(name):
    model = small(name)
    inputs = ask(name, "video", video(64))
    token = model.config.image_token_id if name == "internvl3-8b" else model.config.video_token_id
    with torch.inference_mode():
        assert model(**inputs, logits_to_keep=1).logits.isfinite().all()
        ids = inputs["input_ids"].clone()
        ids[0, (ids[0] == token).nonzero()[-1]] = token - 1  # one placeholder less, and transformers must say so
        with pytest.raises(ValueError, match="do not match"):
            model(**(inputs | {"input_ids": ids}), logits_to_keep=1)


@pytest.mark.parametrize("name", NAMES)
def test_small_and_full_have_the_same_modules(name):
    def kinds(model):
        return {type(module).__name__ for module in model.modules()}

    full = build(name, device="meta")
    assert kinds(full) == kinds(small(name))
    same = ("patch_size", "image_size", "spatial_merge_size", "temporal_patch_size", "window_size")
    for key in same:
        assert getattr(full.config.vision_config, key, None) == getattr(small(name).config.vision_config, key, None)
    largest = 100e6 if name == "llava-1.5-7b" else 10e6  # that one is timed, and must not be all Python
    assert sum(p.numel() for p in chain(small(name).parameters(), small(name).buffers())) < largest
