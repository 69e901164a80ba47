"""Pictures and videos in one prompt, through the processors of all families that take videos."""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.processors import SIDE, VIDEO_PROCESSORS
from vtprune.evals.vocabulary import build_processor
from vtprune.inputs import Ask, in_prompt_order, make_batch, make_inputs
from vtprune.models import Loaded
from vtprune.videos import Video

FAMILIES = tuple(VIDEO_PROCESSORS)
processor = functools.cache(lambda family: VIDEO_PROCESSORS[family]())


def loaded(family):
    stub = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
    return Loaded(family, stub, processor(family))


def clip(frames=6, total=12, fps=4.0, size=(112, 112)):
    """`frames` frames, each of one grey of its own."""
    greys = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 20
    pixels = np.broadcast_to(greys, (frames, size[1], size[0], 3)).copy()
    indices = np.linspace(0, total - 1, frames).astype(int).tolist()
    return Video(pixels, tuple(indices), tuple(i / fps for i in indices), fps, total, total / fps)


def tokens(family, inputs, kind):
    """How many placeholders of a kind the prompt has."""
    named = getattr(processor(family), f"{kind}_token")
    return inputs["input_ids"].eq(processor(family).tokenizer.convert_tokens_to_ids(named)).sum().item()


def expected(family, frames):
    """Tokens of a square video of 112 pixels."""
    return {
        "qwen2_vl": 16 * math.ceil(frames / 2),
        "qwen2_5_vl": 16 * math.ceil(frames / 2),
        "qwen3_vl": 16 * math.ceil(frames / 2),
        "internvl": 4 * frames,
        "llava_onevision": 4 * frames + 1,
        "llava_next_video": 4 * frames,
    }[family]


def in_text(family, inputs):
    return tokens(family, inputs, "image" if family == "internvl" else "video")


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_frames_of_a_video(family, frames):
    inputs = make_inputs(loaded(family), [], "Which object appears first?", [clip(frames)])
    assert in_text(family, inputs) == expected(family, frames)
    name = "pixel_values" if family == "internvl" else "pixel_values_videos"
    assert inputs[name].dtype == torch.bfloat16
    if family.startswith("qwen"):
        steps = math.ceil(frames / 2)
        assert inputs["video_grid_thw"].tolist() == [[steps, 8, 8]]
        assert len(inputs[name][:, 0].unique()) == steps
    else:
        values = inputs[name].view(-1, 3, SIDE, SIDE)
        assert len(values) == len(values[:, 0, 0, 0].unique()) == frames


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_and_videos_in_one_prompt(family):
    picture = Image.new("RGB", (80, 60), "red")
    alone = make_inputs(loaded(family), [picture], "x?")
    both = make_inputs(loaded(family), [picture], "x?", [clip(4)])
    video = make_inputs(loaded(family), [], "x?", [clip(4)])
    if family == "internvl":
        assert tokens(family, both, "image") == tokens(family, alone, "image") + tokens(family, video, "image")
    else:
        assert tokens(family, both, "image") == tokens(family, alone, "image") > 0
        assert tokens(family, both, "video") == tokens(family, video, "video") > 0
    two = make_inputs(loaded(family), [], "x?", [clip(4), clip(4)])
    assert in_text(family, two) == 2 * expected(family, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_with_its_own_placeholders(family):
    image, video = processor(family).image_token, processor(family).video_token
    picture = Image.new("RGB", (80, 60), "red")
    inputs = make_inputs(loaded(family), [picture], f"USER: {video} and {image} ASSISTANT:", [clip(4)])
    assert in_text(family, inputs) >= expected(family, 4)
    with pytest.raises(ValueError, match=r"1 image placeholders .* for 0 picture"):
        make_inputs(loaded(family), [], f"{video} {image}", [clip(4)])
    with pytest.raises(ValueError, match=r"2 video placeholders .* for 1 video"):
        make_inputs(loaded(family), [], f"{video} {video}", [clip(4)])


def test_processors_are_told_the_times():
    """Qwen2.5-VL gets seconds per pair of frames, Qwen3-VL reads the time of every pair in the prompt."""
    inputs = make_inputs(loaded("qwen2_5_vl"), [], "x?", [clip(6, total=12, fps=4.0)])
    assert torch.as_tensor(inputs["second_per_grid_ts"]).tolist() == [pytest.approx(2 * 3.0 / 6)]
    uneven = Video(clip(4).frames, (0, 1, 2, 3), (0.0, 0.2, 2.0, 4.0), 0.8, 4, 5.0)
    inputs = make_inputs(loaded("qwen3_vl"), [], "x?", [clip(4, total=4, fps=2.0)])
    assert "<0.2 seconds>" in processor("qwen3_vl").tokenizer.decode(inputs["input_ids"][0])
    assert "<1.2 seconds>" in processor("qwen3_vl").tokenizer.decode(inputs["input_ids"][0])
    inputs = make_inputs(loaded("qwen3_vl"), [], "x?", [uneven])
    assert "<3.1 seconds>" in processor("qwen3_vl").tokenizer.decode(inputs["input_ids"][0])


def test_frames_are_not_changed():
    video = clip(1)
    before = video.frames.copy()
    make_inputs(loaded("qwen3_vl"), [], "x?", [video])
    assert np.array_equal(video.frames, before)
    assert video.indices == (0,)


def test_refusals():
    stub = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(ValueError, match="takes pictures only"):
        make_inputs(Loaded("tiny-llava", stub, build_processor()), [], "x?", [clip()])
    with pytest.raises(ValueError, match="nothing to look at"):
        make_inputs(loaded("qwen2_vl"), [], "x?")
    with pytest.raises(ValueError, match="nothing but spaces"):
        make_inputs(loaded("qwen2_vl"), [], "  ", [clip()])
    for family in ("internvl", "llava_onevision", "llava_next_video"):
        with pytest.raises(ValueError, match="same number of frames, got 4 and 6") as error:
            make_inputs(loaded(family), [], "x?", [clip(4), clip(6)])
        assert "\n" not in str(error.value)
    mute = VIDEO_PROCESSORS["qwen2_vl"]()
    mute.chat_template = "{{ messages[0]['content'][-1]['text'] }}"
    with pytest.raises(ValueError, match="puts 0 video placeholders"):
        make_inputs(Loaded("mute", stub, mute), [], "x?", [clip()])
    mute.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        make_inputs(Loaded("mute", stub, mute), [], "x?", [clip()])


def test_order_in_the_prompt():
    pictures, videos = [Image.new("RGB", (2, 2)), Image.new("RGB", (3, 3))], [clip()]
    qwen = processor("qwen2_vl")
    assert in_prompt_order(qwen, "x?", pictures, videos) == [*pictures, *videos]
    prompt = f"{qwen.image_token}{qwen.video_token} x {qwen.image_token}"
    assert in_prompt_order(qwen, prompt, pictures, videos) == [pictures[0], videos[0], pictures[1]]


PICTURES = [
    Image.new("RGB", size, colour) for size, colour in (((80, 60), "red"), ((60, 90), "blue"), ((70, 70), "tan"))
]


def rows_of(asks):
    """A batch, and its rows alone."""
    one = loaded(asks[0])
    return make_batch(one, asks[1]), [make_batch(one, [ask]) for ask in asks[1]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "asks",
    [
        [Ask("Where is the star?", PICTURES[:1]), Ask("What?", PICTURES[1:]), Ask("How many circles?", PICTURES[2:])],
        [Ask("x?", (), [clip(4)]), Ask("Which object appears first?", (), [clip(4, fps=2.0)])],
    ],
    ids=["pictures", "videos"],
)
def test_a_batch_holds_its_rows(family, asks):
    """Rows of a batch are those alone, padded on the left; pictures follow one another."""
    batch, alone = rows_of((family, asks))
    for row, single in enumerate(alone):
        ids, length = single["input_ids"][0], single["input_ids"].shape[1]
        assert batch["input_ids"][row, -length:].equal(ids)
        assert batch["attention_mask"][row].sum() == length
    for name in {"pixel_values", "pixel_values_videos"} & set(batch):
        parts = [single[name] for single in alone]
        if len({part.shape[1:] for part in parts}) == 1 and parts[0].ndim != 5:
            assert batch[name].equal(torch.cat(parts))
        else:  # padded with tiles that nothing stands for
            rows = [row for part in parts for row in part]
            assert len(batch[name]) == len(rows)
            for whole, row in zip(batch[name], rows, strict=True):
                assert whole[: len(row)].equal(row)


def test_a_batch_is_about_one_sort_of_thing():
    one = loaded("qwen2_vl")
    with pytest.raises(ValueError, match="all prompts of a batch have images, or none"):
        make_batch(one, [Ask("x?", PICTURES[:1]), Ask("x?", (), [clip(4)])])
    with pytest.raises(ValueError, match="at least one prompt"):
        make_batch(one, [])
    with pytest.raises(ValueError, match="nothing but spaces"):
        make_batch(one, [Ask("x?", PICTURES[:1]), Ask(" ", PICTURES[:1])])
