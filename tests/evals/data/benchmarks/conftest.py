"""What the tests of the benchmarks share: they are apart from the user's folders and the network."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from vtprune.evals.data.benchmarks import places


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """No network, an empty cache of the Hub, and no folder of the user's."""
    monkeypatch.setattr(places, "hub_out_of_reach", lambda: True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("VTPRUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def fields(sample):
    return {name: getattr(sample, name) for name in ("id", "question", "answers", "kind", "group", "choices")}
