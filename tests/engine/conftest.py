"""A tiny model of every family, and a method on it."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.families import FAMILIES


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


@pytest.fixture(params=[(name, "sdpa") for name in FAMILIES], ids=FAMILIES)
def kind(request):
    """Family and attention implementation of `model`, unless `tests.cases.over` or the module names others."""
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


@pytest.fixture
def method(request):
    """Name and parameters of a method: see `tests.cases.over`."""
    return request.param


@pytest.fixture
def pruned(model, method):
    """A model with a method applied."""
    name, parameters = method
    vtprune.apply(model, name, **parameters)
    return model
