"""`vtprune schedule`: output and refusals."""

from __future__ import annotations

import json

import pytest

from vtprune.schedules import Schedule

SHORT = ["--questions", 4, "--batch-size", 4]


@pytest.fixture
def schedule(invoke, model_folder):
    return lambda search, *words: invoke("schedule", search, "--model", model_folder, *SHORT, *words)


def test_gsearch_and_then_psigmoid(schedule, tmp_path):
    first, second = tmp_path / "g.json", tmp_path / "p.json"
    result = schedule("gsearch", "--step", "0.5", "--bound", "100", "--out", first)
    assert result.exit_code == 0, result.output
    assert "vtprune.apply(model, 'gsearch', schedule=" in result.stdout
    assert Schedule.load(first).rates == (1, 0, 0)
    words = ["--keep", "0.6", "--sampler", "sobol", "--evaluations", 2, "--start", first, "--out", second, "--json"]
    result = schedule("psigmoid", *words)
    assert json.loads(result.stdout) == json.loads(second.read_text())
    assert Schedule.load(second).mean <= 0.6


def test_bad_input(schedule, tmp_path):
    out = ["--out", tmp_path / "s.json"]
    for search, words, said in (
        ("search", out, "the search must be gsearch or psigmoid"),
        ("gsearch", ["--out", tmp_path / "s.txt"], "must be the name of a JSON file"),
        ("gsearch", [*out, "--step", "0.3"], "step must be the reciprocal"),
        ("gsearch", [*out, "--score", "x"], "score must be one of"),
        ("psigmoid", out, "a sigmoid needs one budget"),
        ("psigmoid", [*out, "--keep", "0.1", "--sampler", "sobol"], "cannot be met"),
        ("psigmoid", [*out, "--keep", "0.5", "--start", tmp_path / "none.json"], "does not exist"),
    ):
        result = schedule(search, *words)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
