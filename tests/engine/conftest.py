"""A tiny model of every family, and the matrix that every engine test runs over."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.cases import CASES, IDS
from tests.families import FAMILIES

EAGER = ("llava-clip", "llava-siglip", "qwen2_5_vl")
MODELS = [(name, "sdpa") for name in FAMILIES] + [(name, "eager") for name in EAGER]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def built():
    return {(name, attention): FAMILIES[name].model(attention) for name, attention in MODELS}


@pytest.fixture(params=MODELS, ids="-".join)
def kind(request):
    """Family and attention implementation of `model`."""
    return request.param


@pytest.fixture
def family(kind):
    return FAMILIES[kind[0]]


@pytest.fixture
def model(kind, built):
    """A model without methods; whatever a test applies is taken off again."""
    model = built[kind]
    yield model
    vtprune.remove(model)


@pytest.fixture(params=CASES, ids=IDS)
def method(request, model):
    """Name and parameters of a method that works on the model; the others are `test_support.py`'s."""
    try:
        with vtprune.applied(model, request.param[0], **request.param[1]):
            pass
    except ValueError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture
def pruned(model, method):
    """A model with a method applied."""
    name, parameters = method
    vtprune.apply(model, name, **parameters)
    return model
