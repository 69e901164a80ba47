"""What the tests of the evals share: one thread, the processor, a shrunken model."""

from __future__ import annotations

import pytest
import torch

from tests.evals.small import small_llava
from vtprune.evals.vocabulary import build_processor


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def processor():
    return build_processor()


@pytest.fixture(scope="session")
def model():
    return small_llava(layers=2)
