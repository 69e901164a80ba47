"""One tiny model per tower and attention implementation, and the matrix that every engine test runs over."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.cases import CASES, IDS
from tests.tiny import tiny_llava

MODELS = [("clip", "sdpa"), ("clip", "eager"), ("siglip", "sdpa"), ("siglip", "eager")]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def built():
    return {kind: tiny_llava(*kind) for kind in MODELS}


@pytest.fixture(params=MODELS, ids="-".join)
def model(request, built):
    """A model without methods; whatever a test applies is taken off again."""
    model = built[request.param]
    yield model
    vtprune.remove(model)


@pytest.fixture(params=CASES, ids=IDS)
def method(request):
    return request.param


@pytest.fixture
def pruned(model, method):
    """A model with a method applied."""
    name, parameters = method
    vtprune.apply(model, name, **parameters)
    return model
