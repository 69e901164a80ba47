"""What the tests of the demo share: shipped models, and a question about a shipped picture."""

from __future__ import annotations

import pytest

from tests.demo.serving import serve
from vtprune.demo.setting import Limits, Setting
from vtprune.demo.work.chosen import read_chosen
from vtprune.demo.work.media import read_question
from vtprune.demo.work.models import Models
from vtprune.models import load_model, shipped_example


@pytest.fixture(scope="session")
def models():
    return Models([load_model("tiny-llava"), load_model("tiny-qwen2.5-vl")])


@pytest.fixture(scope="session")
def llava(models):
    return models.get("tiny-llava")


@pytest.fixture
def setting(models, tmp_path):
    return Setting(models, tmp_path)


@pytest.fixture(scope="session")
def served(models, tmp_path_factory):
    """The page on a free port, for all tests that leave it as it is: `url`, `page`, `setting`, `uploads`."""
    with serve(models, tmp_path_factory.mktemp("demo")) as one:
        yield one


@pytest.fixture(scope="session")
def picture():
    return shipped_example("scene-1.png")[0]


@pytest.fixture(scope="session")
def clip():
    return shipped_example("clip-1.mp4")[0]


@pytest.fixture(scope="session")
def question(picture):
    return read_question("Which colour does the circle have?", str(picture), None, Limits())


@pytest.fixture
def chain():
    return read_chosen("fastv:layer=2", 0.25)
