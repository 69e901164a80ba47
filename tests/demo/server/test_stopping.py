"""What nobody waits for any more stops, and lets go of the model."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid

import httpx
import pytest

LONG = 128


class Steps:
    """Counts what a model computes, which takes a while."""

    def __init__(self):
        self.taken = 0

    def __call__(self, *_):
        self.taken += 1
        time.sleep(0.02)


@pytest.fixture
def steps(llava, monkeypatch):
    """The model is slow, and its answers are long."""
    generate = llava.model.generate

    def long(**settings):
        return generate(**{**settings, "min_new_tokens": settings["max_new_tokens"]})

    monkeypatch.setattr(llava.model, "generate", long)
    steps = Steps()
    hook = llava.model.register_forward_pre_hook(steps)
    yield steps
    hook.remove()


@pytest.fixture
def client(served):
    with served.program() as one:
        yield one


@pytest.fixture
def freed(served, steps):
    """Afterwards the model must have stopped soon, with nobody in front of it and no thread left."""
    yield
    with served.setting.models.lease("tiny-llava"):
        taken = steps.taken
    _wait(lambda: not [one for one in threading.enumerate() if "vtprune" in one.name])
    time.sleep(0.1)
    assert steps.taken == taken, "it computes further"
    assert taken < LONG, "it answered to the end"


def _wait(done, seconds=30):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["/ask", "/compare"])
def test_a_cancelled_job(client, steps, freed, name):
    job = client.submit(**({"max_new_tokens": LONG} if name == "/ask" else {}), api_name=name)
    _wait(lambda: steps.taken > 5)
    job.cancel()


@contextlib.contextmanager
def _asked(served, beating):
    """A visitor who has asked, and listens until the `with` block ends; the page of one beats, a program need not."""
    session = uuid.uuid4().hex
    data = ["tiny-llava", "What is shown?", "divprune", 0.25, LONG, None, None]
    (number,) = [number for number, fn in served.page.fns.items() if fn.api_name == "ask"]
    with contextlib.ExitStack() as stack:
        browser = stack.enter_context(httpx.Client(base_url=served.url))
        if beating:
            next(stack.enter_context(browser.stream("GET", f"gradio_api/heartbeat/{session}")).iter_lines())
        body = {"data": data, "fn_index": number, "session_hash": session}
        assert browser.post("gradio_api/queue/join", json=body).status_code == 200
        stack.enter_context(browser.stream("GET", f"gradio_api/queue/data?session_hash={session}"))
        yield


@pytest.mark.parametrize("beating", [True, False])
def test_a_connection_that_ends(served, steps, freed, beating):
    with _asked(served, beating):
        _wait(lambda: steps.taken > 5)


def test_a_job_cancelled_while_it_waits_for_the_model(served, client, steps, freed):
    with served.setting.models.lease("tiny-llava"):
        job = client.submit(max_new_tokens=LONG, api_name="/ask")
        _wait(lambda: job.outputs())
        cancelling = threading.Thread(target=job.cancel)
        cancelling.start()
        time.sleep(0.2)
    cancelling.join()
    assert steps.taken == 0


def test_the_next_one_is_served(client, steps):
    job = client.submit(max_new_tokens=LONG, api_name="/ask")
    _wait(lambda: steps.taken > 2)
    job.cancel()
    said, _ = client.predict(max_new_tokens=3, api_name="/ask")
    assert said["report"]["visual_tokens_after"] == 64
