"""What the page gives away reproduces what it shows."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import threading

import pytest
from PIL import Image
from typer.testing import CliRunner

from vtprune.cli import app
from vtprune.demo.setting import Limits
from vtprune.demo.work.asking import ask
from vtprune.demo.work.chosen import read_chosen
from vtprune.demo.work.media import read_question
from vtprune.demo.work.sharing import Request


def _request(question, model="tiny-llava", loading=(), written="fastv:layer=2", frames=4):
    return Request(model, dict(loading), question, read_chosen(written, 0.25), 6, frames)


@pytest.fixture(params=["shipped picture", "uploaded picture", "clip"])
def request_(request, picture, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if request.param == "clip":
        return _request(
            read_question("Which character is shown?", None, str(clip), Limits(frames=4)), "tiny-qwen2.5-vl"
        )
    if request.param == "uploaded picture":
        Image.open(picture).rotate(90).save("it's mine.png")
        return _request(read_question('Is there a "circle"?', "it's mine.png", None, Limits()))
    return _request(read_question("Which colour does the circle have?", str(picture), None, Limits()))


@pytest.fixture
def shown(models, request_):
    *_, last = ask(models, request_.model, request_.question, request_.chain, 6, threading.Event())
    return last


def test_the_command_gives_the_same(request_, shown):
    result = CliRunner().invoke(app, [*shlex.split(request_.command())[1:], "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["answer"], said["baseline_answer"]) == (shown.pruned.text, shown.unpruned.text)
    assert said["kept"] == [list(one.kept) for one in shown.report.pictures]


def test_the_line_of_python_gives_the_same(request_, shown):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(request_.python(), {})
    assert f"answer={shown.pruned.text!r}" in printed.getvalue()
    assert repr(shown.report) in printed.getvalue()


def test_how_models_were_loaded_is_told(question):
    loading = {"device": "cuda:1", "dtype": "bfloat16", "attention": "eager", "trust_remote_code": True}
    request = _request(question, loading=loading.items())
    words = shlex.split(request.command())
    assert words[-7:] == ["--device", "cuda:1", "--dtype", "bfloat16", "--attn", "eager", "--trust-remote-code"]
    assert "device='cuda:1', dtype='bfloat16', attention='eager', trust_remote_code=True" in request.python()


def test_the_document_is_json_and_holds_all(request_, shown):
    document = json.loads(json.dumps(request_.document(shown)))
    assert document["answer"] == shown.pruned.text
    assert document["report"]["visual_tokens_after"] == shown.report.visual_tokens_after
    assert document["times"]["ttft_ms"] == shown.times[1].ttft_ms
    assert document["command"] == request_.command()
