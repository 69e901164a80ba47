"""`vtprune run --video`: a clip through a tiny random model of each family, and clips that cannot be read."""

from __future__ import annotations

import functools
import json
import sys

import numpy as np
import pytest
from PIL import Image

from tests.video_models import VIDEO_MODELS, save_model
from vtprune.evals.clips import draw_clip, make_clip, write_clip
from vtprune.models import shipped_example

pytest.importorskip("decord")

CLIP, QUESTION = shipped_example("clip-1.mp4")

FAMILIES = tuple(VIDEO_MODELS)


@pytest.fixture(scope="session")
def video_models(tmp_path_factory):
    """Folders with a random model of each family; a clip of 112 pixels becomes 4 x 4 tokens for each pair of frames."""
    return functools.cache(lambda family: save_model(family, tmp_path_factory.mktemp(family)))


@pytest.fixture
def watch(invoke, video_models):
    """`vtprune run` about a clip, as JSON."""

    def call(family, *words, video=CLIP):
        given = ["--model", video_models(family), "--video", video, "--prompt", QUESTION, "--max-new-tokens", 2]
        result = invoke("run", *given, "--json", *words)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return call


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip(watch, family):
    tokens = {"internvl": 4 * 8, "llava_onevision": 4 * 8 + 1}.get(family, 16 * 4)
    found = watch(family, "--keep", "12")
    assert (found["visual_tokens_before"], found["visual_tokens_after"]) == (tokens, pytest.approx(12, abs=1))
    assert len(found["kept"]) == 1
    assert 0 < found["prefill_flops_after"] < found["prefill_flops_before"]
    assert 0 < found["kv_bytes_after"] < found["kv_bytes_before"]
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
    everything = watch(family, "--keep", "1.0")
    assert everything["visual_tokens_after"] == tokens
    assert everything["answer"] == everything["baseline_answer"]


@pytest.mark.parametrize(
    ("words", "indices"),
    [(("--frames", 4), [0, 2, 5, 7]), (("--fps", 2), [0, 2, 4, 6]), (("--fps", 2, "--frames", 2), [0, 6])],
)
def test_sampling(watch, words, indices):
    found = watch("qwen2_vl", *words)
    assert found["videos"][0]["indices"] == indices
    assert found["visual_tokens_before"] == 16 * len(indices) // 2


@pytest.mark.parametrize("family", FAMILIES)
def test_overlay_of_a_clip_and_a_picture(watch, picture, tmp_path, family):
    overlay = tmp_path / "kept.png"
    found = watch(family, "--image", picture, "--overlay", overlay)
    assert len(found["kept"]) == 2
    with Image.open(overlay) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > sheet.height


def test_two_clips_for_people(invoke, video_models, tmp_path):
    write_clip(draw_clip(make_clip(3)), tmp_path / "other.mp4")
    given = ["--model", video_models("qwen2_vl"), "--video", CLIP, "--video", tmp_path / "other.mp4", "--prompt", "x?"]
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
