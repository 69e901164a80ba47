"""`vtprune eval`: the document, the product, files of one's own, refusals, runs that were killed, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

SHORT = ["--limit", 6, "--batch-size", 2, "--max-new-tokens", 2]


@pytest.fixture
def evaluate(invoke, model_folder, tmp_path):
    def call(*words, out=tmp_path / "run"):
        return invoke("eval", "--model", model_folder, "--out", out, *SHORT, *words)

    return call


def answers(folder):
    """What was answered, by question and configuration; every pair once."""
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    found = {(line["index"], line["configuration"]): (line["answer"], line["kl"], line["batch"]) for line in lines}
    assert len(found) == len(lines)
    return found


def test_one_method_at_one_budget(evaluate, tmp_path):
    result = evaluate("--method", "divprune", "--keep", "0.25", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["n"] == 6
    assert document["visual_tokens_mean"] == 64
    assert 0 <= document["accuracy"] <= 1
    assert set(document["by_kind"]) == {"colour", "shape", "where", "count", "exists", "read"}
    assert [one["name"] for one in document["configurations"]] == ["unpruned", "divprune@0.25"]
    assert document["folder"] == str(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_product(evaluate):
    result = evaluate("--method", "divprune", "random", "--keep", "0.5", "0.1", "--json")
    names = [one["name"] for one in json.loads(result.stdout)["configurations"]]
    assert names == ["unpruned", "divprune@0.5", "divprune@0.1", "random@0.5", "random@0.1"]
    assert "accuracy" not in json.loads(result.stdout)
    again = evaluate(
        "--method", "divprune", "--method", "random", "-k", "0.5,0.1", "--json"
    )  # another way of writing it: the same run, which is finished
    assert json.loads(again.stdout) == json.loads(result.stdout)


def test_a_table_for_people(evaluate):
    result = evaluate("--method", "tome+fastv:layer=1,keep=0.5", "--keep", "0.5")
    assert result.exit_code == 0, result.output
    assert "tome+fastv:layer=1,keep=0.5@0.5" in result.stdout.replace("\n", "").replace(" ", "").replace("│", "")
    assert "page: " in result.stdout


def test_the_unpruned_model_alone(evaluate):
    document = json.loads(evaluate("--method", "none", "--json").stdout)
    assert document["visual_tokens_mean"] == 256
    assert [one["name"] for one in document["configurations"]] == ["unpruned"]


def test_a_file_of_ones_own(invoke, model_folder, picture, tmp_path):
    lines = [
        {"image": str(picture), "question": "What colour is the circle?", "answer": "red", "kind": "colour"},
        {"image": [str(picture), str(picture)], "question": "Are they alike?", "answers": ["yes"]},
    ]
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    words = [
        "eval",
        "--model",
        model_folder,
        "--data",
        data,
        "--max-new-tokens",
        2,
        "--out",
        tmp_path / "run",
        "--json",
    ]
    document = json.loads(invoke(*words).stdout)
    assert document["n"] == 2
    assert document["failed"] == 0
    assert document["visual_tokens_mean"] == (64 + 128) / 2
    assert document["name"] == "mine"


def test_malformed_lines_are_all_told(invoke, model_folder, picture, tmp_path):
    good = json.dumps({"image": str(picture), "question": "What?", "answer": "red"})
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join([good, "{", good, json.dumps({"image": "none.png", "question": "What?"}), good]))
    words = ["eval", "--model", model_folder, "--data", data, "--max-new-tokens", 2, "--out", tmp_path / "run"]
    refused = invoke(*words)
    assert refused.exit_code == 2
    assert "line 2" in refused.stderr
    assert "line 4" in refused.stderr
    assert "none.png" in refused.stderr
    assert not (tmp_path / "run").exists()
    result = invoke(*words, "--skip-malformed", "--json")
    document = json.loads(result.stdout)
    assert document["n"] == 3
    assert len(document["malformed"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "divprun"], "divprun"),
        (["--suite", "scene"], "suite must be one of scenes, clips"),
        (["--suite", "scenes", "--data", "x.jsonl"], "two sources"),
        (["--data", "missing.jsonl"], "missing.jsonl"),
        (["--keep", "1.5"], "keep"),
        (["--method", "none", "--keep", "0.5"], "keep=0.5 is for a method"),
        (["--metric", "exactmatch"], "exact_match"),
        (["--suite", "clips"], "takes no videos"),
        (["--frames", "4"], "--frames and --fps are about videos in files"),
        (["--device-map", "all"], "device_map must be one of auto"),
        (["stray"], "stray"),
    ],
)
def test_refusals(evaluate, tmp_path, words, said):
    result = evaluate(*words)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_a_run_with_other_settings_is_not_touched(evaluate, tmp_path):
    assert evaluate("--method", "random").exit_code == 0
    held = answers(tmp_path / "run")
    result = evaluate("--method", "divprune")
    assert result.exit_code == 2
    assert "configurations: ['unpruned', 'random'], now ['unpruned', 'divprune']" in result.stderr
    assert answers(tmp_path / "run") == held


# Whole processes.

# On a machine without GPUs this is how accelerate starts several processes without mpirun.
LAUNCHER = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m"]


@pytest.fixture(scope="module")
def start(model_folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = ["--model", model_folder, "--limit", 14, "--batch-size", 2, "--max-new-tokens", 3, "--keep", "0.25"]
    words += ["--device", "cpu"]

    def call(out, *launcher):
        command = [
            *(launcher or (sys.executable, "-m")),
            "vtprune.cli",
            "eval",
            *words,
            "--device",
            "cpu",
            "--out",
            out,
        ]
        return subprocess.Popen(
            [str(word) for word in command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return call


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return folder


def test_a_killed_run_goes_on(start, whole, tmp_path):
    process = start(tmp_path)
    file = tmp_path / "questions.jsonl"
    began = time.monotonic()
    while process.poll() is None and not (file.exists() and file.stat().st_size) and time.monotonic() - began < 120:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    held = file.read_text()
    assert 0 < len(held.splitlines()) < 28
    again = start(tmp_path)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    whole_lines = "".join(line for line in held.splitlines(keepends=True) if line.endswith("\n"))
    kept = whole_lines.splitlines()[: len(whole_lines.splitlines()) // 4 * 4]
    assert file.read_text().splitlines()[: len(kept)] == kept
    assert answers(tmp_path) == answers(whole)


def test_two_processes_give_what_one_does(start, whole, tmp_path):
    """Seven batches: an uneven split."""
    process = start(tmp_path, sys.executable, "-m", *LAUNCHER)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert answers(tmp_path) == answers(whole)
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (whole, tmp_path))
    assert two["environment"]["processes"] == 2
    timed = {"ttft_ms", "ttft_interval", "ttft_share", "seconds_per_question", "tokens_per_second", "pareto"}
    for mine, other in zip(one["configurations"], two["configurations"], strict=True):
        assert {k: v for k, v in mine.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}
