import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtprune.evals.pages.pareto import pareto

values = st.one_of(st.none(), st.integers(0, 4).map(float), st.floats(-1, 1))


@given(st.lists(st.tuples(values, values), max_size=12))
def test_the_front_by_its_two_properties(points):
    front = pareto(points)
    on = [point for point, marked in zip(points, front, strict=True) if marked]
    off = [point for point, marked in zip(points, front, strict=True) if not marked and None not in point]
    assert not any(None in point for point in on)
    ranked = sorted(set(on))
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(ranked))  # it only ever rises
    assert all(any(a[0] <= b[0] and a[1] >= b[1] and a != b for a in on) for b in off)  # the front beats all others


def test_ties_are_on_the_front_together():
    assert pareto([(1, 0.5), (1, 0.5), (2, 0.5), (1, 0.4), (3, 0.9)]) == [True, True, False, False, True]


def test_the_unknown_is_not_on_it():
    assert pareto([(None, 1.0), (1, None), (2, 0.1)]) == [False, False, True]
    assert pareto([]) == []


def test_nan_is_refused():
    with pytest.raises(ValueError, match="at 1"):
        pareto([(1, 2), (1, math.nan)])
