"""Several visitors at once: each is told what would be told alone, and the server talks to nobody else."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import httpx
from gradio_client import handle_file

from tests.demo.serving import serve
from vtprune.models import shipped_example

MODELS = ("tiny-llava", "tiny-qwen2.5-vl")
QUESTIONS = ("Which colour does the circle have?", "How many stars are there?", "Is there a square?")
METHODS = ("divprune", "fastv:layer=2", "divprune:keep=0.5+fastv:layer=1,keep=0.5")
VISITORS = 6


def _requests():
    """Requests of all kinds, no two alike."""
    found = []
    for number, (model, method) in enumerate(itertools.product(MODELS, METHODS)):
        picture = handle_file(shipped_example(f"scene-{1 + number % 6}.png")[0])
        given = {"model": model, "question": QUESTIONS[number % 3], "picture": picture}
        budget = None if "+" in method else (0.1, 0.3, 20)[number % 3]
        found.append(("/ask", {**given, "method": method, "keep": budget, "max_new_tokens": 4 + number % 3}))
        found.append(("/select", {**given, "method": method, "keep": budget}))
        found.append(("/compare", {**given, "methods": [method, "divprune:keep=9"], "keep": budget}))
    return found


def _said(client, name, given):
    """What comes of a request, without times."""
    result = client.predict(**given, api_name=name)
    if name == "/compare":
        return [{key: value for key, value in entry.items() if key != "ttft_ms"} for entry in result["entries"]]
    said, _ = result
    return {key: value for key, value in said.items() if key not in ("times", "baseline_times")}


def test_results_are_those_of_each_alone(served, monkeypatch):
    monkeypatch.setattr("vtprune.demo.work.measuring.ROUNDS", 1)
    monkeypatch.setattr("vtprune.demo.work.measuring.TOKENS", 2)
    monkeypatch.setattr("vtprune.demo.work.comparing.ROUNDS", 1)
    requests = _requests()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.program()) for _ in range(VISITORS)]
        alone = [_said(clients[0], *one) for one in requests]
        order = list(range(len(requests)))
        random.Random(0).shuffle(order)
        with ThreadPoolExecutor(VISITORS) as visitors:
            found = list(visitors.map(lambda at: _said(clients[at % VISITORS], *requests[at]), order))
    assert len({str(one) for one in alone}) == len(alone)
    for at, one in zip(order, found, strict=True):
        assert one == alone[at], requests[at]


def test_what_is_kept_from_one_step_to_the_next_is_its_visitors(served):
    states = [block for block in served.page.blocks.values() if isinstance(block, gr.State)]
    assert states
    with served.program() as first, served.program() as second:
        one, other = (served.page.app.state_holder[client.session_hash] for client in (first, second))
        for state in states:
            one[state._id] = "mine"
            assert "mine" not in (other[state._id], state.value)


def test_the_server_talks_to_nobody_else(models, monkeypatch, tmp_path):
    reached, connect, resolve = set(), socket.socket.connect, socket.getaddrinfo

    def connected(self, address):
        reached.add(address[0] if isinstance(address, tuple) else address)
        return connect(self, address)

    def resolved(host, *rest, **options):
        reached.add(host)
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket.socket, "connect", connected)
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    question, chosen = ["tiny-llava", "What is shown?"], ["divprune", 0.25]
    with serve(models, tmp_path) as served, httpx.Client(base_url=served.url, timeout=60) as browser:
        assert browser.get("").status_code == 200
        for name, rest in (("ask", [*chosen, 2]), ("select", chosen), ("compare", [["random"], 9])):
            data = {"data": [*question, *rest, None, None]}
            event = browser.post(f"gradio_api/call/{name}", json=data).json()["event_id"]
            assert "event: complete" in browser.get(f"gradio_api/call/{name}/{event}").text
    assert reached <= {"127.0.0.1", "localhost"}
    assert reached
