"""Tiny models of every family, a prompt for each, and a method's plan on it."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.families import FAMILIES, IMAGE
from vtprune.api import build_chain
from vtprune.bench import Requested


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@functools.cache
def model_of(name):
    return FAMILIES[name].model()


def prompt_of(name, *rows, new_tokens=3):
    """A padded batch of prompts; by default one of a picture between two texts."""
    family = FAMILIES[name]
    made = [family.row(*parts, seed=i) for i, parts in enumerate(rows or [(5, IMAGE, 7)])]
    return Requested(family.inputs(*made), new_tokens)


def chain_of(method, keep=None, **parameters):
    return build_chain(method, keep, parameters)
