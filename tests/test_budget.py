from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtprune.budget import pyramid, token_count, token_counts


@given(
    keep=st.one_of(st.floats(0.001, 1.0), st.integers(1, 400)),
    tokens=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
)
def test_many_counts_are_single_counts(keep: float | int, tokens: list[int]) -> None:
    assert token_counts(keep, torch.tensor(tokens)).tolist() == [token_count(keep, n) for n in tokens]


def test_halves_go_to_even() -> None:
    assert token_counts(0.5, torch.tensor([1, 3, 5, 7])).tolist() == [1, 2, 2, 4]


def test_budgets_of_a_pyramid_have_their_mean_and_fall_evenly():
    steps = pyramid(0.25, 5, 20)
    assert math.isclose(sum(steps) / 5, 0.25)
    assert math.isclose(steps[-1], 0.0125)
    assert all(math.isclose(a - b, steps[0] - steps[1]) for a, b in itertools.pairwise(steps))
    assert pyramid(0.75, 3) == (1.0, 0.75, 0.5)  # nothing above all of it
    assert pyramid(24, 8, most=40, least=8) == (40, 35, 31, 26, 22, 17, 13, 8)
    assert pyramid(12, 3, most=100, least=5) == (12, 12, 12)
    assert pyramid(64, 1) == (64,)
    with pytest.raises(ValueError, match="pyramid needs"):
        pyramid(0.25, 5, 0.5)
