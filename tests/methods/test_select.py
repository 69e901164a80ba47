from __future__ import annotations

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from vtprune.methods._select import (
    check_choice,
    check_number,
    check_whole_numbers,
    given,
    index_mask,
    top_k_mask,
)


def naive(scores: list[float], count: int, valid: list[bool]) -> list[bool]:
    """Rank by (number before NaN, higher score, lower index)."""
    usable = [i for i, ok in enumerate(valid) if ok]
    usable.sort(key=lambda i: (scores[i] != scores[i], 0.0 if scores[i] != scores[i] else -scores[i], i))
    return [i in usable[: max(count, 0)] for i in range(len(scores))]


@settings(max_examples=60, deadline=None)
@drawn(data=st.data(), rows=st.integers(1, 3), tokens=st.integers(1, 9))
def test_matches_naive(data: st.DataObject, rows: int, tokens: int) -> None:
    number = st.sampled_from([0.0, 0.5, 1.0, -1.0, float("inf"), float("-inf"), float("nan")])
    scores = [data.draw(st.lists(number, min_size=tokens, max_size=tokens)) for _ in range(rows)]
    valid = [data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)) for _ in range(rows)]
    counts = data.draw(st.lists(st.integers(0, tokens + 2), min_size=rows, max_size=rows))
    mask = top_k_mask(torch.tensor(scores), torch.tensor(counts), torch.tensor(valid))
    assert mask.tolist() == [naive(*args) for args in zip(scores, counts, valid, strict=True)]
    mask = top_k_mask(torch.tensor(scores), counts[0])
    assert mask.tolist() == [naive(s, counts[0], [True] * tokens) for s in scores]


@pytest.mark.parametrize("tokens", [1, 7, 63, 577])
def test_equal_scores_keep_the_first(tokens: int) -> None:
    count = (tokens + 1) // 2
    assert torch.equal(top_k_mask(torch.full((2, tokens), 0.3), count), (torch.arange(tokens) < count).expand(2, -1))


def test_bfloat16_ties_are_stable() -> None:
    scores = torch.linspace(1.0, 0.99, 577).bfloat16()[None]
    mask = top_k_mask(scores, 100)
    order = sorted(range(577), key=lambda i: (-scores[0, i].item(), i))
    assert mask[0].nonzero()[:, 0].tolist() == sorted(order[:100])


def test_scores_are_left_alone_and_need_no_gradient() -> None:
    scores = torch.tensor([[0.1, float("nan"), 0.3]], requires_grad=True)
    assert top_k_mask(scores, 1).tolist() == [[False, False, True]]
    assert scores.isnan().sum() == 1


def test_non_contiguous_scores() -> None:
    scores = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)).T
    assert torch.equal(top_k_mask(scores, 3), top_k_mask(scores.contiguous(), 3))


def test_index_mask() -> None:
    assert index_mask(torch.tensor([[2, 0], [1, 1]]), 3).tolist() == [[True, False, True], [False, True, False]]


def test_given_names_the_missing_signal() -> None:
    signal = torch.ones(1)
    assert given(signal, "fastv", "last_query") is signal
    with pytest.raises(ValueError, match="method 'fastv' needs the signal 'last_query', but got None"):
        given(None, "fastv", "last_query")


def test_check_choice() -> None:
    check_choice("init", "nn", ("nn", "cls"))
    with pytest.raises(ValueError, match="init must be one of 'nn', 'cls', got 'random'"):
        check_choice("init", "random", ("nn", "cls"))


def test_check_number() -> None:
    for value in (0, 1, 0.5):
        check_number("tau", value, 0, 1)
    for value in (-0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"tau must be a number in \[0, 1\], got"):
            check_number("tau", value, 0, 1)
    for wrong in (None, "1", True):
        with pytest.raises(TypeError, match=r"tau must be a number .* of type"):
            check_number("tau", wrong, 0, 1)
    with pytest.raises(ValueError, match=r"ratio must be a number in \(0, 1\], got 0"):
        check_number("ratio", 0, 0, 1, above_low=True)


def test_check_whole_numbers() -> None:
    assert check_whole_numbers("r", 3, 0) == 3
    assert check_whole_numbers("r", [3, 0], 0) == (3, 0)
    assert check_whole_numbers("side", (3, 4), 1, 2) == (3, 4)
    for value, count in ((-1, None), ([], None), ([1, -1], None), ([1, 2, 3], 2)):
        with pytest.raises(ValueError, match="r must be a whole number >= 0 or a sequence of"):
            check_whole_numbers("r", value, 0, count)
    for wrong in (1.0, "12", None, True, [1, 2.0]):
        with pytest.raises(TypeError, match="r must be a whole number"):
            check_whole_numbers("r", wrong, 0)
