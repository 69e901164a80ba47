from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vtprune.budget import token_count, token_counts


@given(
    keep=st.one_of(st.floats(0.001, 1.0), st.integers(1, 400)),
    tokens=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
)
def test_many_counts_are_single_counts(keep: float | int, tokens: list[int]) -> None:
    assert token_counts(keep, torch.tensor(tokens)).tolist() == [token_count(keep, n) for n in tokens]


def test_halves_go_to_even() -> None:
    assert token_counts(0.5, torch.tensor([1, 3, 5, 7])).tolist() == [1, 2, 2, 4]
