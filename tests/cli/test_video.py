"""`vtprune run --video`: clips that cannot be read, and a clip through a tiny random Qwen2-VL."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tests.processors import VIDEO_PROCESSORS
from vtprune.evals.clips import draw_clip, make_clip, write_clip
from vtprune.integrations import FAMILIES
from vtprune.models import shipped_example

CLIP, QUESTION = shipped_example("clip-1.mp4")

takes_videos = pytest.mark.skipif(
    "qwen2_vl" not in {kind for family in FAMILIES for kind in family.model_types},
    reason="no family that takes videos is supported",
)


@pytest.fixture(scope="session")
def video_model(tmp_path_factory):
    """A folder with a random Qwen2-VL; a clip of 112 pixels becomes 4 x 4 tokens for each pair of frames."""
    folder = tmp_path_factory.mktemp("models") / "random-qwen2-vl"
    processor = VIDEO_PROCESSORS["qwen2_vl"]()
    ids = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            "bos_token_id": ids("<s>"),
            "eos_token_id": ids("</s>"),
            "pad_token_id": ids("<pad>"),
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def watch(invoke, video_model):
    """`vtprune run` about a clip, as JSON."""

    def call(*words, video=CLIP):
        given = ["--model", video_model, "--video", video, "--prompt", QUESTION, "--max-new-tokens", 2, "--json"]
        result = invoke("run", *given, *words)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return call


@takes_videos
def test_a_clip(watch):
    found = watch("--keep", "0.25")
    assert (found["visual_tokens_before"], found["visual_tokens_after"]) == (64, 16)
    assert [len(kept) for kept in found["kept"]] == [16]
    assert 0 < found["prefill_flops_after"] < found["prefill_flops_before"]
    assert found["videos"] == [
        {
            "file": str(CLIP),
            "indices": list(range(8)),
            "times": [n / 4 for n in range(8)],
            "fps": 4.0,
            "total_frames": 8,
            "duration": 2.0,
        }
    ]
    everything = watch("--keep", "1.0")
    assert everything["answer"] == everything["baseline_answer"]


@takes_videos
@pytest.mark.parametrize(
    ("words", "indices"),
    [(("--frames", 4), [0, 2, 5, 7]), (("--fps", 2), [0, 2, 4, 6]), (("--fps", 2, "--frames", 2), [0, 6])],
)
def test_sampling(watch, words, indices):
    found = watch(*words)
    assert found["videos"][0]["indices"] == indices
    assert found["visual_tokens_before"] == 16 * len(indices) // 2


@takes_videos
def test_overlay_of_a_clip_and_a_picture(watch, picture, tmp_path):
    overlay = tmp_path / "kept.png"
    found = watch("--image", picture, "--overlay", overlay)
    assert len(found["kept"]) == 2
    with Image.open(overlay) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > sheet.height


@takes_videos
def test_two_clips_for_people(invoke, video_model, tmp_path):
    write_clip(draw_clip(make_clip(3)), tmp_path / "other.mp4")
    given = ["--model", video_model, "--video", CLIP, "--video", tmp_path / "other.mp4", "--prompt", "x?"]
    result = invoke("run", *given, "--frames", 6, "--max-new-tokens", 1)
    assert result.exit_code == 0, result.output
    assert "video: clip-1.mp4, 6 of 8 frames, 2.0 s" in result.output
    assert f"video: other.mp4, 6 of {make_clip(3).frames} frames" in result.output


def bad_clips(folder):
    content = CLIP.read_bytes()
    (folder / "half.mp4").write_bytes(content[: len(content) // 2])
    (folder / "head.mp4").write_bytes(content[:30])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    (folder / "folder.mp4").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "picture.png")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("half.mp4", "truncated or damaged"),
        ("head.mp4", "truncated or damaged"),
        ("empty.mp4", "empty file"),
        ("text.mp4", "no video"),
        ("folder.mp4", "is a folder"),
        ("picture.png", "is a picture; use --image"),
        ("missing.mp4", "does not exist"),
    ],
)
def test_bad_clips(refused, tmp_path, capfd, name, said):
    bad_clips(tmp_path)
    refused("--video", tmp_path / name, said=[said, name])
    assert capfd.readouterr().err == ""  # nothing from the libraries below


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--frames", 0), "frames must be a whole number >= 1, got 0"),
        (("--frames", -3), "got -3"),
        (("--fps", 0), "fps must be a number above 0"),
        (("--fps", "nan"), "got nan"),
        (("--fps", "inf"), "got inf"),
    ],
)
def test_bad_sampling(refused, words, said):
    refused("--video", CLIP, *words, said=said)


def test_url(refused):
    refused("--video", "https://example.org/clip.mp4", said="is a URL")


def test_model_that_takes_pictures_only(refused):
    refused("--video", CLIP, said="takes pictures only")


def test_clip_without_a_prompt(invoke, model_folder):
    result = invoke("run", "--model", model_folder, "--video", CLIP)
    assert result.exit_code == 2
    assert "--prompt is missing" in result.stderr


def test_without_decord(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    refused("--video", CLIP, said="pip install decord")
