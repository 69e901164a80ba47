"""What programs may call: results are those of the library, and what is wrong is said in one line."""

from __future__ import annotations

import json

import pytest
from gradio_client import handle_file

import vtprune.run
from vtprune.images import load_image

ASKED = "Which colour does the circle have?"


@pytest.fixture
def client(served, tmp_path):
    with served.program(tmp_path) as one:
        yield one


def _as_json(report):
    return json.loads(json.dumps(report.to_dict()))


def test_ask(client, llava, picture):
    given = {"question": ASKED, "method": "fastv:layer=2", "keep": 0.25, "max_new_tokens": 8}
    said, drawn = client.predict(**given, picture=handle_file(picture), api_name="/ask")
    wanted = vtprune.run.compare(llava, [load_image(picture)], ASKED, "fastv:layer=2", 0.25, max_new_tokens=8)
    assert (said["answer"], said["baseline_answer"]) == (wanted.answer, wanted.baseline_answer)
    assert said["report"] == _as_json(wanted.report)
    assert said["times"]["ttft_ms"] > 0
    assert load_image(drawn).size[0] > 0


def test_ask_about_a_clip(client, models, clip):
    given = {"model": "tiny-qwen2.5-vl", "question": "What is shown?", "method": "divprune", "keep": 64}
    said, _ = client.predict(**given, max_new_tokens=2, clip=handle_file(clip), api_name="/ask")
    assert said["keep"] == 64
    assert said["report"]["visual_tokens_after"] == 64


def test_ask_tells_what_is_said_while_it_is(client):
    job = client.submit(max_new_tokens=8, api_name="/ask")
    said, _ = job.result()
    steps = [step for step, _ in job.outputs()]
    assert len(steps) > 3
    assert (steps[0]["answer"], steps[-1]["answer"]) == ("", said["answer"])


def test_select(client, llava, picture):
    report, drawn = client.predict(
        question=ASKED, method="divprune", keep=0.1, picture=handle_file(picture), api_name="/select"
    )
    wanted = vtprune.run.compare(llava, [load_image(picture)], ASKED, "divprune", 0.1, max_new_tokens=1)
    assert report["pictures"] == _as_json(wanted.report)["pictures"]
    assert load_image(drawn).size[0] > 0


def test_compare(client, llava, picture):
    methods = ["divprune:keep=0.5", "fastv:layer=2", "tome:keep=0.5+fastv:layer=1,keep=0.5"]
    said = client.predict(question=ASKED, methods=methods, keep=0.25, picture=handle_file(picture), api_name="/compare")
    first, *entries = said["entries"]
    assert (first["method"], first["report"]) == (None, None)
    assert [one["method"] for one in entries] == methods
    for one, keep in zip(entries, (None, 0.25, None), strict=True):
        wanted = vtprune.run.compare(llava, [load_image(picture)], ASKED, one["method"], keep, max_new_tokens=64)
        assert (one["answer"], first["answer"]) == (wanted.answer, wanted.baseline_answer)
        assert one["report"] == _as_json(wanted.report)


@pytest.mark.parametrize("name", ["/ask", "/select", "/compare"])
def test_all_arguments_have_defaults(client, name):
    assert client.predict(api_name=name)


def test_nothing_else_is_offered(client):
    info = client.view_api(return_format="dict", print_info=False)
    assert set(info["named_endpoints"]) == {"/ask", "/select", "/compare"}
    assert info["unnamed_endpoints"] == {}
    for endpoint in info["named_endpoints"].values():
        assert endpoint["description"]
        for one in endpoint["parameters"]:
            assert one["parameter_has_default"], one
            assert "http" not in json.dumps(one), "an example that the server would have to fetch"
