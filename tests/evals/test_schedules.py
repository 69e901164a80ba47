"""Searches for schedules on models."""

from __future__ import annotations

import pytest

import vtprune
from vtprune.evals.journal import Journal
from vtprune.evals.probes import Probe
from vtprune.evals.schedules import Quality, Settings, search_gsearch, search_psigmoid
from vtprune.models import load_model
from vtprune.schedules import Schedule


@pytest.fixture(scope="module")
def shipped():
    return load_model("tiny-qwen2.5-vl", device="cpu")


@pytest.fixture
def quality(shipped):
    return Quality(shipped, Settings(questions=8, batch_size=8), Journal(None, {}))


def test_the_cost_of_a_schedule_is_what_reports_say(shipped, quality):
    rates = (1.0, 1.0, 0.5, 0.25, 0.25, 0.0)
    cost = quality.cost()
    (report,) = quality.probe.reports([("gsearch", {"schedule": rates})], 1)
    assert cost.flops(rates) == report.prefill_flops_after
    assert cost.flops([1.0] * 6) == report.prefill_flops_before


def test_gsearch_keeps_its_bound_and_writes_what_applies(shipped, quality, tmp_path):
    found = search_gsearch(quality, bound=0.5, step=0.25, about={"model": "tiny-qwen2.5-vl"})
    assert found.mean < 0.8
    assert found.about["value"] >= found.about["unpruned"] - 0.5
    assert found.about["prefill_flops"] < 1
    found.save(tmp_path / "s.json")
    chain = [f"gsearch:schedule='{tmp_path / 's.json'}'"]
    read = quality.probe.read(chain)
    assert read.mean == pytest.approx(found.about["value"], abs=1e-4)
    assert Schedule.load(tmp_path / "s.json").about == found.about
    with vtprune.applied(shipped.model, "gsearch", schedule=str(tmp_path / "s.json")):
        pass


@pytest.mark.parametrize("budget", [{"keep": 0.5, "flops": None}, {"keep": None, "flops": 0.85}])
def test_psigmoid_meets_its_budget(quality, budget):
    found = search_psigmoid(quality, **budget, evaluations=3, sampler="sobol", start=None, about={})
    spent = found.mean if budget["keep"] else found.about["prefill_flops"]
    wanted = budget["keep"] or budget["flops"]
    assert wanted - 0.04 <= spent <= wanted + 1e-4
    assert found.score == "text_queries_ahead"


def test_probes_are_asked_once(shipped, quality, monkeypatch):
    first = search_gsearch(quality, bound=0.5, step=0.5, about={})
    again = Quality(shipped, quality.settings, quality.journal)
    monkeypatch.setattr(Probe, "read", lambda *args: pytest.fail("asked twice"))
    assert search_gsearch(again, bound=0.5, step=0.5, about={}) == first


def test_scores_of_the_layer_before_begin_at_the_third_layer(shipped):
    quality = Quality(shipped, Settings(score="last_query", questions=4, metric="accuracy"), Journal(None, {}))
    found = search_gsearch(quality, bound=1.0, step=0.5, about={})
    assert found.rates == (1, 1, 0, 0, 0, 0)


def test_bad_settings(quality):
    with pytest.raises(ValueError, match="score must be one of"):
        Settings(score="x")
    with pytest.raises(ValueError, match="a sigmoid needs one budget"):
        search_psigmoid(quality, keep=None, flops=None, evaluations=1, sampler="sobol", start=None, about={})
    with pytest.raises(ValueError, match="cannot be met"):
        search_psigmoid(quality, keep=0.1, flops=None, evaluations=1, sampler="sobol", start=None, about={})
