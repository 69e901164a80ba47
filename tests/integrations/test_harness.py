"""What a harness asks, as calls of a model; without any harness."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.processors import VIDEO_PROCESSORS
from vtprune.evals.runner.answering import answer
from vtprune.integrations.harness import (
    NEW_TOKENS,
    Reader,
    batches,
    conversation,
    cut,
    generation_settings,
    inputs_of,
    wanted_chain,
)
from vtprune.methods.divprune import DivPrune
from vtprune.models import Loaded, load_model, shipped_example

PICTURES = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]


@pytest.fixture(scope="module")
def qwen():
    stub = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    return Loaded("qwen", stub, VIDEO_PROCESSORS["qwen2_5_vl"]())


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny-llava", device="cpu")


def user(*parts):
    said = [{"type": "text", "text": x} if isinstance(x, str) else {"type": "image", "url": x} for x in parts]
    return [{"role": "user", "content": said}]


def kinds(asked):
    return [part.get("text", part["type"]) for part in asked.messages[0]["content"]]


def test_parts_stay_in_their_order(qwen):
    asked = conversation(qwen, user(PICTURES[0], "and", PICTURES[1], "?"), Reader())
    assert kinds(asked) == ["image", "and", "image", "?"]
    assert asked.images == tuple(PICTURES[:2])


@pytest.mark.parametrize("mark", ["<image>", "<|image_pad|>"])
def test_marks_in_the_text_say_where_pictures_stand(qwen, mark):
    asked = conversation(qwen, user(*PICTURES[:2], f"A: {mark} B: {mark} which?"), Reader())
    assert kinds(asked) == ["A: ", "image", " B: ", "image", " which?"]


def test_marks_that_are_not_one_for_each_picture_are_taken_out(qwen, caplog):
    asked = conversation(qwen, user(PICTURES[0], "<image> is like <image>?"), Reader())
    assert kinds(asked) == ["image", " is like ?"]
    assert "marks 2 places for 1 pictures" in caplog.text


def test_prompts_with_several_pictures_and_of_several_lengths_make_one_batch(qwen):
    asked = [conversation(qwen, user(*PICTURES[:count], "what is this" * count), Reader()) for count in (1, 3, 2)] + [
        conversation(qwen, user("only words"), Reader())
    ]
    assert list(batches(asked)) == [[0, 1, 2], [3]]
    together = inputs_of(qwen, asked[:3])
    assert len(together["image_grid_thw"]) == 6
    for row, one in enumerate(asked[:3]):
        alone = inputs_of(qwen, [one])["input_ids"][0]
        assert together["input_ids"][row, -len(alone) :].equal(alone)
        assert together["attention_mask"][row].sum() == len(alone)


def test_words_alone_are_answered(tiny):
    asked = [conversation(tiny, user(text), Reader()) for text in ("how many?", "what colour is the square?")]
    together = answer(tiny, inputs_of(tiny, asked), 4).texts
    assert together == [answer(tiny, inputs_of(tiny, [one]), 4).texts[0] for one in asked]


def test_videos_come_from_files(qwen):
    clip = str(shipped_example("clip-1.mp4")[0])
    asked = conversation(qwen, [{"role": "user", "content": [{"type": "video", "url": clip}]}], Reader(frames=3))
    assert asked.shape == (False, (3,))
    assert isinstance(Reader().read(str(shipped_example()[0])), Image.Image)


@pytest.mark.parametrize(
    ("medium", "kind", "said"),
    [
        ({"url": "a.mp4", "type": "video", "start_time": 3.0}, None, "part of a video"),
        ("a.wav", "audio", "only pictures and videos"),
        ({"array": [0.0], "sampling_rate": 16000}, None, "only pictures and videos"),
    ],
)
def test_what_cannot_be_shown_is_refused(medium, kind, said):
    with pytest.raises(ValueError, match=said):
        Reader().read(medium, kind)


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({}, {"do_sample": False, "max_new_tokens": NEW_TOKENS}),
        ({"max_new_tokens": 8, "temperature": 0, "do_sample": True, "top_p": 0.5, "num_beams": 3}, {"num_beams": 3}),
        ({"temperature": 0.5, "do_sample": False, "top_p": 0.9}, {"do_sample": True, "temperature": 0.5, "top_p": 0.9}),
        ({"do_sample": True, "temperature": None}, {"do_sample": True}),
    ],
)
def test_generation(wishes, expected):
    usual = {"do_sample": False, "max_new_tokens": wishes.get("max_new_tokens", NEW_TOKENS)}
    assert generation_settings({**wishes, "until": ["x"]}) == {**usual, **expected}


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (None, "one.\n\ntwo USER: three"),
        (["\n\n"], "one.\n\ntwo USER: three"),
        (["USER:", "two"], "one."),
        ("three", "one.\n\ntwo USER:"),
    ],
)
def test_answers_end_where_the_task_says(until, expected):
    assert cut(" one.\n\ntwo USER: three ", until) == expected


def test_methods():
    assert wanted_chain(None, None, {}) == wanted_chain("None", "none", {}) == []
    assert wanted_chain("divprune", 0.25, {}) == [DivPrune(keep=0.25)]
    assert wanted_chain("pyramiddrop", None, {"layers": "[1,2]", "keep": 0.5})[0].layers == (1, 2)
    assert len(wanted_chain("tome:keep=0.5+fastv:layer=2;keep=0.5", None, {})) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((None, 0.25, {"layer": 2}), "layer, keep is of no use without a method; the settings are pretrained"),
        (("fastv", 0.25, {"max_frames": 8}), "no parameter 'max_frames'.* The settings are pretrained"),
        (("fatsv", None, {}), "Did you mean 'fastv'"),
        (("fastv", 25.0, {}), "keep must be a ratio"),
    ],
)
def test_settings_that_are_no_use_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        wanted_chain(*settings)
