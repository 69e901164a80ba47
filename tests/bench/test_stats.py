"""Medians, quartiles, ratios, drift."""

from __future__ import annotations

import pytest

from vtprune.bench import Settings
from vtprune.bench.stats import Ratio, Spread, drift


def test_spread():
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0)


def test_ratio_says_whether_it_says_anything():
    slow, fast, near = Spread(4.0, 3.5, 4.5), Spread(2.0, 1.9, 2.2), Spread(3.0, 2.2, 3.6)
    assert Ratio.of(slow, fast) == Ratio(2.0, True)
    assert Ratio.of(slow, near) == Ratio(4 / 3, False)
    assert not Ratio.of(near, fast).significant
    assert Ratio.of(slow, Spread(0.0, 0.0, 0.0)) is None


def test_drift():
    assert drift([1.0]) == 0
    assert drift([1.0, 1.0, 1.0]) == 0
    assert drift([2.0, 2.0, 9.0, 3.0, 3.0]) == pytest.approx(0.5)
    assert drift([3.0, 3.0, 1.5, 1.5]) == pytest.approx(0.5)


@pytest.mark.parametrize(("name", "value"), [("repeats", 0), ("warmup", -1), ("new_tokens", 0), ("repeats", 2.0)])
def test_settings(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        Settings(**{name: value})
