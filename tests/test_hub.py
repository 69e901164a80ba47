"""Whether the Hub is out of reach, known at once."""

from __future__ import annotations

import socket

import pytest
from huggingface_hub import constants

from vtprune.hub import hub_out_of_reach


@pytest.fixture
def endpoint(monkeypatch):
    """A server that stands for the Hub."""
    monkeypatch.setattr("vtprune.hub.getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def test_somebody_answers(endpoint):
    assert not hub_out_of_reach()


def test_nobody_answers(endpoint):
    endpoint.close()
    assert hub_out_of_reach()


def test_behind_a_proxy_it_may_be_reached(endpoint, monkeypatch):
    endpoint.close()
    monkeypatch.setattr("vtprune.hub.getproxies", lambda: {"https": "http://127.0.0.1:9"})
    assert not hub_out_of_reach()


def test_it_is_not_wanted(endpoint, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_out_of_reach()
