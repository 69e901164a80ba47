"""Intervals: what a plain bootstrap gives, and honest where that gives nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from vtprune.evals.statistics import mean_interval, paired_interval


@pytest.fixture
def clustered():
    """40 pictures with 1 to 5 questions; those about one picture resemble one another."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    easy = rng.random(40)[groups]
    scores, baseline = ((rng.random(len(groups)) < easy).astype(float) for _ in range(2))
    return scores, baseline, groups


def plain_bootstrap(values, groups, resamples=4000):
    rng = np.random.default_rng(1)
    members = [values[groups == group] for group in np.unique(groups)]
    means = []
    for _ in range(resamples):
        drawn = [members[i] for i in rng.integers(0, len(members), len(members))]
        means.append(np.concatenate(drawn).mean())
    return np.quantile(means, [0.025, 0.975])


def test_agrees_with_a_plain_loop(clustered):
    scores, baseline, groups = clustered
    low, high = mean_interval(scores, groups)
    assert np.allclose([low, high], plain_bootstrap(scores, groups), atol=0.01)
    # Clusters matter: as if all questions were about different pictures, it would be shorter.
    alone = mean_interval(scores, range(len(scores)))
    assert high - low > 1.2 * (alone[1] - alone[0])
    difference, low, high = paired_interval(scores, baseline, groups)
    assert difference == pytest.approx(scores.mean() - baseline.mean())
    assert np.allclose([low, high], plain_bootstrap(scores - baseline, groups), atol=0.01)


def test_agrees_with_scipy(clustered):
    scores, _, groups = clustered
    sums, counts = np.bincount(groups, weights=scores), np.bincount(groups)
    found = bootstrap(
        (sums, counts),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    assert np.allclose(mean_interval(scores, groups), found.confidence_interval, atol=0.007)


def test_same_seed_same_interval_in_any_order(clustered):
    scores, baseline, groups = clustered
    order = np.random.default_rng(2).permutation(len(scores))
    assert mean_interval(scores, groups) == mean_interval(scores[order], groups[order])
    assert mean_interval(scores, groups) != mean_interval(scores, groups, seed=1)
    assert paired_interval(scores, baseline, groups, seed=3) == paired_interval(scores, baseline, groups, seed=3)


def test_covers_the_truth():
    """About 95 % of the intervals of samples hold the mean of all."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        difficulty = rng.beta(2, 1, 80)
        scores = (rng.random((80, 3)) < difficulty[:, None]).astype(float).ravel()
        low, high = mean_interval(scores, np.repeat(np.arange(80), 3), resamples=1000)
        hits += low <= 2 / 3 <= high
    assert 0.91 <= hits / 300 <= 0.98


def test_parts_of_scores(clustered):
    """Means of many different values, drawn in several steps."""
    _, _, groups = clustered
    scores = np.random.default_rng(3).random(len(groups))
    assert np.allclose(mean_interval(scores, groups), plain_bootstrap(scores, groups), atol=0.01)


@pytest.mark.parametrize("n", [2, 10, 200])
def test_all_right_and_all_wrong_are_not_certain(n):
    wilson = binomtest(n, n).proportion_ci(method="wilson")
    low, high = mean_interval([1.0] * n, range(n))
    assert (low, high) == pytest.approx((wilson.low, 1))
    assert mean_interval([0.0] * n, range(n)) == pytest.approx((0, 1 - wilson.low))
    difference, below, above = paired_interval([1.0] * n, [1.0] * n, range(n))
    assert difference == 0
    assert (below, above) == pytest.approx((low - 1, 1 - low))


def test_questions_about_one_picture_are_one_group():
    """Ten right answers about two pictures say as little as two."""
    assert mean_interval([1.0] * 10, ["a"] * 5 + ["b"] * 5) == mean_interval([1.0] * 2, ["a", "b"])
    assert mean_interval([1.0, 0.0], ["a", "a"]) is None
    assert paired_interval([1.0, 0.0], [0.0, 0.0], ["a", "a"]) is None


def test_a_constant_difference():
    difference, low, high = paired_interval([0.5] * 20, [0.25] * 20, range(20))
    assert low < difference == 0.25 < high


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=30))
def test_any_scores(rows):
    scores, baseline, groups = zip(*rows, strict=True)
    interval = mean_interval(scores, groups, resamples=200)
    paired = paired_interval(scores, baseline, groups, resamples=200)
    assert (interval is None) == (paired is None) == (len(set(groups)) == 1)
    if interval is not None:
        assert 0 <= interval[0] <= interval[1] <= 1
        assert -1 <= paired[1] <= paired[2] <= 1


@pytest.mark.parametrize(
    ("scores", "groups", "message"),
    [
        ([], [], "scores must be a list of at least one number"),
        ([1.0], ["a", "b"], "groups must be as many as scores, got 2 and 1"),
        ([1.0, 1.5], "ab", r"scores must be from 0 to 1, got 1\.5"),
        ([1.0, float("nan")], "ab", "scores must be from 0 to 1, got nan"),
    ],
)
def test_bad_input(scores, groups, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(scores, groups)
