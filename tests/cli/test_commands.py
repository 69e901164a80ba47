"""The other commands."""

from __future__ import annotations

import importlib.metadata
import json

import pytest

from vtprune.integrations import FAMILIES


def test_methods_json(invoke):
    result = invoke("methods", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    for entry in found:
        assert set(entry) >= {"name", "kind", "places", "families", "needs_training", "needs_text", "paper"}
        assert set() < set(entry["families"]) <= {family.family for family in FAMILIES}
    names = [entry["name"] for entry in found]
    assert names == sorted(names)
    assert {"divprune", "fastervlm", "fastv", "fourier", "tome", "exit", "todre", "random", "uniform"} <= set(names)


def test_methods_table(invoke):
    result = invoke("methods")
    assert result.exit_code == 0
    assert "divprune" in result.stdout
    assert "pruning" in result.stdout


def test_methods_by_pattern(invoke):
    found = json.loads(invoke("methods", "fast*", "--json").stdout)
    assert [entry["name"] for entry in found] == ["fastervlm", "fastv"]
    assert json.loads(invoke("methods", "nothing*", "--json").stdout) == []


def test_one_method_in_full(invoke):
    result = invoke("methods", "fastv")
    assert result.exit_code == 0
    said = " ".join(result.stdout.split())
    assert said.startswith("fastv: Keeps the visual tokens that the last prompt token attended to most")
    assert "attention of the last prompt token in the decoder layer before" in said
    assert "first decoder layer with the reduced set" in said
    assert "'mean', 'max'" in invoke("methods", "snapkv").stdout
    (found,) = json.loads(invoke("methods", "fastv", "--json").stdout)
    assert found["arxiv"] == "2403.06764"
    assert found["about_parameters"]["keep"].startswith("ratio in (0, 1]")
    assert found["choices"] == {"positions": ["auto", "original", "compact"]}


def test_version(invoke):
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.strip() == importlib.metadata.version("vtprune")


def test_help_states_how_time_is_measured(invoke):
    text = " ".join(invoke("run", "--help").stdout.split())
    assert "max_new_tokens=1" in text
    assert "median" in text


def test_train_passes_its_options_on(invoke, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("vtprune.evals.train_tiny_llava.train", lambda out, **options: seen.append((out, options)))
    assert invoke("train", "tiny-llava", "--out", tmp_path, "--resume", "--minutes", "5").exit_code == 0
    assert seen == [(tmp_path, {"resume": True, "minutes": 5.0})]


def test_train_knows_the_models_that_take_clips(invoke, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "vtprune.evals.train_family.train_family", lambda name, out, **options: seen.append((name, out, options))
    )
    for name in ("tiny-internvl", "tiny-qwen2.5-vl"):
        assert invoke("train", name, "--out", tmp_path).exit_code == 0
    expected = {"resume": False, "minutes": None}
    assert seen == [("tiny-internvl", tmp_path, expected), ("tiny-qwen2.5-vl", tmp_path, expected)]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["huge-llava"], "unknown recipe 'huge-llava'"), (["tiny-llava", "--minutes", "0"], "minutes must be > 0")],
)
def test_train_refuses(invoke, tmp_path, words, said):
    result = invoke("train", *words, "--out", tmp_path)
    assert result.exit_code == 2
    assert said in result.stderr
