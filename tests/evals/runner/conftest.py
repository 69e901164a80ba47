"""What the tests of the runner share: a small model, and questions about drawn scenes."""

from __future__ import annotations

import functools

import pytest

from vtprune.evals.data.suites import read_suite
from vtprune.evals.runner.configurations import plan
from vtprune.evals.runner.evaluate import evaluate
from vtprune.evals.runner.processes import Processes
from vtprune.models import Loaded


@pytest.fixture(scope="session")
def loaded(model, processor):
    return Loaded("small", model, processor)


@pytest.fixture(scope="session")
def scenes():
    return read_suite("scenes", limit=11)


@pytest.fixture(scope="session")
def run(loaded, scenes):
    """`evaluate` with few questions, two methods at two budgets, batches of four and short answers."""
    configurations = plan(["divprune", "snapkv:keep=0.3"], [0.5, 0.1])
    settings = {"batch_size": 4, "max_new_tokens": 3, "pictures": 1, "processes": Processes()}

    def call(out, questions=scenes, configurations=configurations, **more):
        return evaluate(loaded, questions, configurations, out, **{**settings, **more})

    return functools.wraps(evaluate)(call)
