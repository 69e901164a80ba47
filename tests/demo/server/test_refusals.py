"""What is wrong with a request is said in one line, and the next one is served."""

from __future__ import annotations

import logging

import pytest
from gradio_client.exceptions import AppError

from vtprune.demo.server.messages import LONGEST

HUGE = "x" * 500_000


@pytest.fixture(scope="module")
def client(served):
    with served.program() as one:
        yield one


def _refused(client, name, given):
    with pytest.raises(AppError) as error:
        client.predict(**given, api_name=name)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) <= LONGEST + 2
    assert "Traceback" not in message
    assert ".py" not in message
    return message


@pytest.mark.parametrize("name", ["/ask", "/select"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "tiny-lava"}, "model must be one of tiny-llava, tiny-qwen2.5-vl, got 'tiny-lava'"),
        ({"model": "/etc"}, "model must be one of"),
        ({"model": {"a": 1}}, "model must be one of"),
        ({"model": HUGE}, "model must be one of"),
        ({"question": ""}, "question must not be empty"),
        ({"question": " \n"}, "question must not be empty"),
        ({"question": None}, "question must be a text"),
        ({"question": {"a": 1}}, "question must be a text"),
        ({"question": HUGE}, "question must have at most 2,000 letters, got 500,000"),
        ({"question": "<image> <image> what?"}, "placeholder"),
        ({"method": "divprun"}, "Did you mean 'divprune'"),
        ({"method": ""}, "method must name at least one method"),
        ({"method": None}, "method must be a text"),
        ({"method": ["divprune"]}, "method must be a text"),
        ({"method": "divprune:keep"}, "name=value"),
        ({"method": "divprune:keep=[1"}, "is missing in"),
        ({"method": "divprune:kep=1"}, "no parameter 'kep'"),
        ({"method": "fastv:layer=99"}, "layer"),
        ({"method": "fastv:layer=1e99"}, "layer"),
        ({"method": "random:seed=1" + "0" * 50}, "seed"),
        ({"method": HUGE}, "method must have at most"),
        ({"method": "+".join(["divprune:keep=0.5"] * 200)}, "method must have at most"),
        ({"method": "gsearch:schedule=/etc/passwd"}, "reads no files by name"),
        ({"keep": 0}, "keep must be a ratio in (0, 1]"),
        ({"keep": -1}, "keep must be a ratio in (0, 1]"),
        ({"keep": 1.5}, "keep must be a ratio in (0, 1]"),
        ({"keep": "a"}, "keep must be a ratio in (0, 1]"),
        ({"keep": True}, "keep must be a ratio in (0, 1]"),
        ({"keep": [0.25]}, "keep must be a ratio in (0, 1]"),
    ],
)
def test_arguments(client, name, given, said):
    assert said in _refused(client, name, given)


@pytest.mark.parametrize("tokens", [0, -1, 129, 10**30, 2.5, "8", None, True, [8], {"a": 8}])
def test_lengths(client, tokens):
    said = "max_new_tokens must be a whole number from 1 to 128"
    assert said in _refused(client, "/ask", {"max_new_tokens": tokens})


@pytest.mark.parametrize("methods", [[], ["divprune"] * 13, None, "divprune", [1], {"a": 1}, [["divprune"]]])
def test_lists_of_methods(client, methods):
    assert "methods must be" in _refused(client, "/compare", {"methods": methods})


def test_one_method_that_does_not_suit_leaves_the_others(client):
    said = client.predict(methods=["fastv:layer=99", "divprune"], api_name="/compare")
    _, wrong, right = said["entries"]
    assert "layer" in wrong["error"]
    assert right["report"] is not None


def test_faults_of_ours_are_not_told(client, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("the secret of /srv/models")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "vtprune.demo"):
        patch.setattr("vtprune.demo.server.endpoints.select", fail)
        message = _refused(client, "/select", {})
    assert message.startswith("Something went wrong")
    assert "the secret" not in message
    assert "the secret" in caplog.text


def test_the_model_works_after(client):
    _refused(client, "/select", {"method": "fastv:layer=99"})
    assert client.predict(method="fastv:layer=2", api_name="/select")
