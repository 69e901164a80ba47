"""`vtprune run` as a user meets it: the shipped model, any picture, bad input."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vtprune.cli import app
from vtprune.models import load_model, shipped_example

CONTRACT = {
    "answer",
    "baseline_answer",
    "visual_tokens_before",
    "visual_tokens_after",
    "prefill_flops_before",
    "prefill_flops_after",
    "kv_bytes_before",
    "kv_bytes_after",
    "ttft_ms",
    "baseline_ttft_ms",
    "kept",
}


CLIP = shipped_example("clip-1.mp4")[0]

load_once = functools.cache(load_model)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """Loading is not what these tests are about."""
    monkeypatch.setattr("vtprune.models.load_model", load_once)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(path)
    return path


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def run_json(*arguments: object) -> dict:
    result = invoke("run", "--json", *arguments)
    assert result.exit_code == 0, result.stderr or result.output
    return json.loads(result.stdout)


def test_contract(photo):
    out = run_json("--image", photo, "--prompt", "How many objects are there?", "--method", "divprune", "--keep", 0.25)
    assert set(out) >= CONTRACT
    assert (out["visual_tokens_before"], out["visual_tokens_after"]) == (256, 64)
    assert [len(kept) for kept in out["kept"]] == [64]
    assert out["kept"][0] == sorted(set(out["kept"][0]))
    assert 0 < out["prefill_flops_after"] < out["prefill_flops_before"]
    assert 0 < out["kv_bytes_after"] < out["kv_bytes_before"]
    assert out["ttft_ms"] > 0
    assert out["baseline_ttft_ms"] > 0


def test_defaults_answer_the_shipped_example(tmp_path):
    """What `make run` does."""
    overlay = tmp_path / "new" / "overlay.png"
    result = invoke("run", "--overlay", overlay)
    assert result.exit_code == 0, result.output
    for word in ("question:", "visual tokens", "prefill FLOPs", "KV cache", "time to first token", "256", "64"):
        assert word in result.output
    with Image.open(overlay) as image:
        assert image.format == "PNG"


def test_the_example_is_answered_correctly():
    path, question = shipped_example()
    expected = {e["question"]: e["answer"] for e in json.loads((path.parent / "examples.json").read_text())}[question]
    out = run_json("--image", path, "--prompt", question, "--method", "divprune", "--keep", 1.0)
    assert out["answer"].lower() == out["baseline_answer"].lower() == expected.lower()


def test_absolute_budget_above_the_picture(photo):
    out = run_json("--image", photo, "--prompt", "x", "--keep", 1000)
    assert out["visual_tokens_after"] == 256
    assert any("kept everything" in note for note in out["notes"])
    assert out["answer"] == out["baseline_answer"]


def test_chain_and_settings(photo):
    chain = ["--method", "tome:keep=0.5", "--method", "fastv:layer=2,keep=0.5"]
    out = run_json("--image", photo, "--prompt", "x", *chain)
    assert out["visual_tokens_after"] == 64
    assert out["methods"] == ["tome", "fastv"]
    out = run_json("--image", photo, "--prompt", "x", "--method", "fastv", "--keep", 10, "--set", "layer=3")
    assert out["places"][0]["layer"] == 3


def test_several_pictures_and_a_raw_prompt(photo):
    out = run_json("--image", photo, "--image", photo, "--prompt", "x", "--keep", 10)
    assert out["visual_tokens_after"] == 20
    out = run_json("--image", photo, "--prompt", "USER: <image>\nx ASSISTANT:", "--keep", 10)
    assert out["visual_tokens_after"] == 10


KINDS = {
    "rgb.jpg": ("RGB", (50, 30)),
    "cmyk.jpg": ("CMYK", (50, 30)),
    "grey.png": ("L", (50, 30)),
    "alpha.png": ("RGBA", (50, 30)),
    "palette.png": ("P", (50, 30)),
    "sixteen.png": ("I;16", (50, 30)),
    "one.bmp": ("RGB", (1, 1)),
    "photo.webp": ("RGB", (50, 30)),
    "moving.gif": ("P", (50, 30)),
    "long.png": ("RGB", (3000, 2)),
    "big.jpg": ("RGB", (6000, 4000)),
}


@pytest.mark.parametrize("name", KINDS)
def test_any_picture(tmp_path, name):
    mode, size = KINDS[name]
    path = tmp_path / name
    Image.new(mode, size).save(path)
    out = run_json("--image", path, "--prompt", "How many objects are there?")
    assert out["visual_tokens_after"] == 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep", "0"], "keep must be"),
        (["--keep", "-0.5"], "got -0.5"),
        (["--keep", "1.5"], "got 1.5"),
        (["--keep", "nan"], "got nan"),
        (["--keep", "many"], "got 'many'"),
        (["--method", "divprun"], "Did you mean 'divprune'"),
        (["--method", "divprune:kep=0.5"], "no parameter 'kep'"),
        (["--set", "kep=0.5"], "no parameter 'kep'"),
        (["--set", "keep"], "name=value"),
        (["--method", "fastv:layer=99"], "layer must be"),
        (["--method", "fastv", "--method", "divprune"], "order of their places"),
        (["--model", "tiny-lava"], "Did you mean 'tiny-llava'"),
        (["--model", "./nowhere"], "does not exist"),
        (["--device", "quantum"], "device 'quantum'"),
        (["--dtype", "int3"], "dtype must be"),
        (["--prompt", "  "], "nothing but spaces"),
        (["--prompt", "<image> <image> x"], "2 image placeholders"),
        (["--video", CLIP], "pictures only"),
        (["--overlay", "/proc/nothing.png"], "cannot be written"),
    ],
)
def test_bad_arguments(photo, arguments, words):
    result = invoke("run", "--image", photo, "--prompt", "x", *arguments)
    assert_refused(result, words)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("no picture"), "no picture"),
        (lambda path: path.write_bytes(_png()[:200]), "truncated"),
    ],
    ids=["missing", "folder", "empty", "text", "truncated"],
)
def test_bad_pictures(tmp_path, make, words):
    path = tmp_path / "x.png"
    make(path)
    assert_refused(invoke("run", "--image", path, "--prompt", "x"), words)


def test_text_only_model(tmp_path, photo):
    from transformers import LlamaConfig

    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path / "text")
    assert_refused(
        invoke("run", "--image", photo, "--prompt", "x", "--model", tmp_path / "text"), "no vision-language model"
    )
    (tmp_path / "empty").mkdir()
    assert_refused(invoke("run", "--image", photo, "--prompt", "x", "--model", tmp_path / "empty"), "no config.json")


def test_missing_prompt(photo):
    assert_refused(invoke("run", "--image", photo), "--prompt is missing")


def assert_refused(result, words: str) -> None:
    assert result.exit_code == 2, result.output
    assert words in result.stderr.replace("\n", " "), result.stderr
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == ""


def _png() -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_methods():
    listed = json.loads(invoke("methods", "--json").stdout)
    assert {"name", "kind", "places", "families", "needs_training", "needs_text", "paper"} <= set(listed[0])
    assert "divprune" in [one["name"] for one in listed]
    assert "divprune" in invoke("methods").output


def test_installed_command_prints_only_json(tmp_path):
    """The real program in a real process: nothing but the document on stdout, or one line about an error on stderr."""

    def call(*words):
        command = [Path(sys.executable).parent / "vtprune", "run", "--json", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)

    done = call("--keep", "32")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["visual_tokens_after"] == 32
    assert list(tmp_path.iterdir()) == []
    done = call("--image", "missing.jpg", "--prompt", "What?")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: picture 'missing.jpg' does not exist.\n"
