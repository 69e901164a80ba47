"""Schedules, their files and their searches: the specification's checks, on metrics of which the best is known."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import random
import sys

import pytest

from vtprune.schedule_search import FLOOR, gsearch, psigmoid
from vtprune.schedules import (
    PrefillCost,
    Schedule,
    centred,
    fitted_sigmoid,
    mean,
    ramp_rates,
    sigmoid_rates,
)

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed")
SAMPLERS = [pytest.param("gp", marks=needs_optuna), "sobol"]


class Oracle:
    """1 if every layer has what it needs, else 0; counts how often it is asked."""

    def __init__(self, needed):
        self.needed, self.calls = needed, 0

    def __call__(self, rates):
        self.calls += 1
        return float(all(rate >= need - 1e-9 for rate, need in zip(rates, self.needed, strict=True)))


@pytest.mark.parametrize("strategy", ["bisection", "scan"])
@pytest.mark.parametrize("seed", range(5))
def test_gsearch_finds_exactly_what_is_needed(strategy, seed):
    draw = random.Random(seed)
    needed = (1.0, *sorted((draw.randrange(21) / 20 for _ in range(9)), reverse=True))
    oracle = Oracle(needed)
    found = gsearch(oracle, 10, strategy=strategy)
    assert found.rates == pytest.approx(needed)
    assert oracle.calls == found.about["probes"]
    assert strategy == "scan" or oracle.calls <= 1 + 9 * 5


def test_calls_grow_with_the_depth_only_linearly():
    calls = []
    for layers in (16, 32, 64):
        oracle = Oracle((1.0,) + (0.5,) * (layers - 1))
        gsearch(oracle, layers)
        calls.append(oracle.calls)
    assert calls[2] - calls[1] == 2 * (calls[1] - calls[0])


def test_bisection_equals_a_scan_on_monotone_metrics():
    for seed in range(20):
        draw = random.Random(seed)
        weights = [draw.random() for _ in range(8)]

        def metric(rates, weights=weights):
            return sum(w * min(rate, 0.8) ** 0.5 for w, rate in zip(weights, rates, strict=True))

        both = [gsearch(metric, 8, bound=0.4, strategy=x).rates for x in ("bisection", "scan")]
        assert both[0] == both[1]
        assert metric(both[0]) >= metric((1.0,) * 8) - 0.4


def test_all_may_leave_and_nothing_needs_to():
    assert gsearch(lambda rates: 1.0, 4).rates == (1, 0, 0, 0)
    assert gsearch(lambda rates: mean(rates), 4).rates == (1, 1, 1, 1)
    assert gsearch(lambda rates: 1.0, 4, first=3).rates == (1, 1, 1, 0)


def test_bad_arguments_of_a_search():
    with pytest.raises(ValueError, match="step must be the reciprocal"):
        gsearch(mean, 4, step=0.3)
    with pytest.raises(ValueError, match="first must be a layer from 1 to 3, got 4"):
        gsearch(mean, 4, first=4)
    with pytest.raises(ValueError, match="a budget of 0.1 cannot be met"):  # noqa: RUF043
        psigmoid(mean, 4, 0.1, sampler="sobol")
    with pytest.raises(ValueError, match="sampler must be one of"):
        psigmoid(mean, 4, 0.5, sampler="tpe")


@pytest.mark.parametrize("budget", [1 / 2, 1 / 3, 1 / 9])
def test_every_sigmoid_meets_its_budget(budget):
    for steepness in (1, 3, 10, 60):
        for floor in (0.0, 0.05):
            rates = sigmoid_rates(32, steepness, centred(budget, 32, steepness, floor), floor)
            assert mean(rates) == pytest.approx(budget, abs=1e-3)
            assert all(later <= earlier for earlier, later in itertools.pairwise(rates))
            assert rates[0] == 1
            assert min(rates) >= floor


def test_limits_of_the_sigmoid():
    flat = sigmoid_rates(24, 1e-3, centred(0.3, 24, 1e-3, whole=0), whole=0)
    assert flat == pytest.approx([0.3] * 24, abs=1e-3)
    step = sigmoid_rates(24, 1000, centred(0.5, 24, 1000))
    assert step == pytest.approx([1.0] * 12 + [0.0] * 12, abs=1e-3)


def test_a_sigmoid_is_recovered_from_its_curve():
    assert fitted_sigmoid(sigmoid_rates(32, 8, 0.4, 0.05)) == (8, 0.4, 0.05)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_psigmoid_finds_the_best_curve_at_its_budget(sampler):
    """The metric has its best at a known steepness and floor of the same budget."""
    target = sigmoid_rates(24, 7, centred(0.4, 24, 7, 0.1), 0.1)

    def metric(rates):
        assert mean(rates) == pytest.approx(0.4, abs=1e-3)
        return -math.dist(rates, target)

    found = psigmoid(metric, 24, 0.4, sampler=sampler, evaluations=24)
    assert found.about["value"] > -0.15
    assert found == psigmoid(metric, 24, 0.4, sampler=sampler, evaluations=24)
    started = psigmoid(metric, 24, 0.4, sampler=sampler, evaluations=1, start=Schedule(target))
    assert started.about["value"] > -0.2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_tight_budget_leaves_no_floor(sampler):
    found = psigmoid(lambda rates: 0.0, 4, 0.25, sampler=sampler, evaluations=3)
    assert found.rates == pytest.approx((1, 0, 0, 0), abs=1e-6)
    assert FLOOR > 0


def test_without_optuna_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'vtprune\[search\]'; or choose .* sampler='sobol'"):
        psigmoid(mean, 4, 0.5)


def test_prefill_cost_counts_as_reports_do():
    cost = PrefillCost(layers=((10, 4), (10, 4)), visual=8, text=2, other=100)
    assert cost.flops((1, 1)) == 100 + 2 * (10 * 10 + 4 * 100 * 4)
    assert cost.flops((1, 0.5)) == 100 + (10 * 10 + 4 * 100 * 4) + (6 * 10 + 4 * 36 * 4)
    assert cost.share((1, 1)) == 1
    found = psigmoid(mean, 2, 0.9, measure=cost.share, sampler="sobol", evaluations=2)
    assert cost.share(found.rates) <= 0.9


def test_files_come_back_as_they_were(tmp_path):
    path = tmp_path / "schedule.json"
    schedule = Schedule(ramp_rates(6), "last_query", {"search": "none"})
    schedule.save(path)
    found = Schedule.load(path)
    assert found == schedule
    assert found.about == {"search": "none"}
    assert json.loads(path.read_text())["vtprune schedule"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "is none: it has no 'vtprune schedule'"),
        ("{", "is no JSON"),
        ('{"vtprune schedule": 2, "rates": [1]}', "is of version 2; this vtprune reads 1"),
        ('{"vtprune schedule": 1}', "cannot be used: rates must be numbers"),
        ('{"vtprune schedule": 1, "rates": [1, 0.2, 0.4]}', "that never grow"),
        ('{"vtprune schedule": 1, "rates": [1, NaN]}', "that never grow"),
        ('{"vtprune schedule": 1, "rates": [1, "a"]}', "rates must be numbers"),
        ('{"vtprune schedule": 1, "rates": [0.5, 0.2]}', "the first one 1"),
        ('{"vtprune schedule": 1, "rates": [1], "score": 3}', "score must be the name"),
        ('{"vtprune schedule": 1, "rates": [1], "about": 3}', "about must be a table"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "schedule.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Schedule.load(path)
