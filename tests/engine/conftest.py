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


class Built(dict):
    """Models by family and attention implementation, made where they are first asked for."""

    def __missing__(self, kind):
        self[kind] = FAMILIES[kind[0]].model(kind[1])
        return self[kind]


@pytest.fixture(scope="session")
def built():
    return Built()


@pytest.fixture(params=MODELS, ids="-".join)
def kind(request):
    """Family and attention implementation of `model`; modules that run on fewer have one of their own."""
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


def working(case, model):
    """The case if it works on the model; the others are `test_support.py`'s."""
    try:
        with vtprune.applied(model, case[0], **case[1]):
            pass
    except ValueError as error:
        pytest.skip(str(error))
    return case


@pytest.fixture(params=[case for case in CASES if "positions" not in case[1]], ids=lambda case: case[0])
def method(request, model):
    """Name and parameters of a method, with the position rule that it comes with."""
    return working(request.param, model)


@pytest.fixture(params=CASES, ids=IDS)
def variant(request, model):
    """Name and parameters of a method, with its own and with another position rule."""
    return working(request.param, model)


@pytest.fixture
def pruned(model, method):
    """A model with a method applied."""
    name, parameters = method
    vtprune.apply(model, name, **parameters)
    return model
