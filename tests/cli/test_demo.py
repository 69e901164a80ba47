"""`vtprune demo`: it serves, ends cleanly, and says in one line why it does not."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest


def _environment(scratch):
    return {**os.environ, "TMPDIR": str(scratch), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_leaves_nothing(model_folder, tmp_path, number):
    words = [sys.executable, "-m", "vtprune.cli", "demo", "--model", model_folder]
    process = subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=_environment(tmp_path),
        # Where tests run in the background it would inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = process.stdout.readline()
        url = re.fullmatch(r"vtprune demo: (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", line)[1]
        assert "vtprune" in httpx.get(url).text
        sent = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", b"a")}).json()[0]
        assert os.path.exists(sent)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in err
    assert out in ("", "Keyboard interruption in main thread... closing server.\n")  # gradio's own words
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "files are left"
    assert process.returncode == (0 if number == signal.SIGINT else 128 + signal.SIGTERM)


@pytest.fixture
def refused(invoke):
    def call(*words, said):
        result = invoke("demo", *words)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, result.stderr
        assert said in lines[0]

    return call


def test_wrong_models_and_folders(refused, model_folder, tmp_path):
    refused("--model", "tiny-lava", said="unknown model 'tiny-lava'")
    refused("--model", model_folder, "--model", model_folder, said="each named once")
    refused("--results", tmp_path / "none", said="is no folder")
    refused("--model", model_folder, "--results", tmp_path, said=str(tmp_path))


def test_without_gradio(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused(said="the demo needs gradio, which is not installed: pip install 'vtprune[demo]'")


def test_options_out_of_range(invoke):
    for words in (["--port", "0"], ["--port", "99999"], ["--upload-mb", "0"], ["--at-once", "0"]):
        assert invoke("demo", *words).exit_code == 2


def test_addresses_that_cannot_be_served_on(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused("--port", port, said=f"--port {port}: Address already in use")
    refused("--host", "192.0.2.1", said="--host '192.0.2.1': Cannot assign requested address")
    refused("--host", "no such host", said="--host 'no such host'")
