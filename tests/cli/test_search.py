"""`vtprune search`: output, refusals, and a search that is taken up again."""

from __future__ import annotations

import json

import pytest

from vtprune.evals import search as module
from vtprune.evals.chains import Candidate

SHORT = ["--calibration", 24, "--held-out", 6, "--batch-size", 12]


@pytest.fixture
def search(invoke, model_folder, monkeypatch):
    few = [Candidate("divprune"), Candidate("fastv:layer=1", ("exit",))]
    monkeypatch.setattr(module, "candidates", lambda: few)

    def call(*words):
        return invoke("search", "--model", model_folder, *SHORT, *words)

    return call


def test_a_table_and_a_document(search, tmp_path):
    out = tmp_path / "new" / "s.json"
    result = search("--flops", "0.9", "--flops", "0.05", "--out", out)
    assert result.exit_code == 0, result.output
    assert "24 questions to choose, 6 others to judge" in " ".join(result.stdout.split())
    assert "vtprune.apply(model, [" in result.stdout
    assert "--method " in result.stdout
    assert "5% of FLOPs: no chain reaches it" in result.stdout
    document = json.loads(out.read_text())
    assert list(document["budgets"]) == ["0.9", "0.05"]
    assert document["search"]["command"].startswith("vtprune search --model ")
    again = search("--flops", "0.9", "--out", out, "--json")
    assert json.loads(again.stdout) == document


def test_bad_input(search, tmp_path):
    for words, said in (
        (["--flops", "25", "--out", tmp_path / "s.json"], "--flops must be a share in (0, 1), got 25"),
        (["--flops", "0.5", "--out", tmp_path / "s.txt"], "must be the name of a JSON file"),
        (["--flops", "0.5", "--out", tmp_path / "s.json", "--suite", "vqa"], "suite must be one of scenes, clips"),
        (["--flops", "0.5", "--out", tmp_path / "s.json", "--metric", "x"], "metric must be one of likelihood"),
        (["--flops", "0.5", "--out", tmp_path / "s.json", "--suite", "clips"], "takes no videos"),
    ):
        result = search(*words)
        assert result.exit_code == 2, result.output
        assert said in result.stderr


def test_interrupted(search, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Search, "judged", stop)
    result = search("--flops", "0.9", "--out", tmp_path / "s.json")
    assert result.exit_code == 130
    assert "evaluations are kept; the same command goes on" in result.stderr
