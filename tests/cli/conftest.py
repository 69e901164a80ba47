"""What the tests of the command line share: a tiny random model in a folder, a picture, and a way to call it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.evals.small import small_llava
from vtprune.cli import app
from vtprune.evals.export import export
from vtprune.images import load_image


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "random-llava"
    export(small_llava(layers=3), folder)
    return folder


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "gradient.png"
    Image.radial_gradient("L").convert("RGB").resize((120, 80)).save(path)
    assert load_image(path).size == (120, 80)
    return path


@pytest.fixture
def invoke(monkeypatch):
    """Call the command line in this process. An exception that is no exit fails the test with its traceback."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words):
        return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)

    return call


@pytest.fixture
def ask(invoke, model_folder, picture):
    """`vtprune run` on the random model: further words are added, or take the place of these."""

    def call(*words, model=model_folder, image=picture, prompt="What colour is the circle?"):
        given = ["--model", model, "--image", image, "--max-new-tokens", 2]
        if prompt is not None:
            given += ["--prompt", prompt]
        return invoke("run", *given, *words)

    return call


@pytest.fixture
def refused(ask):
    """`vtprune run` must refuse: exit code 2, one line on stderr that holds all of `said`, nothing on stdout."""

    def call(*words, said, **given):
        result = ask(*words, **given)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, result.stderr
        for text in [said] if isinstance(said, str) else said:
            assert text in lines[0]

    return call
