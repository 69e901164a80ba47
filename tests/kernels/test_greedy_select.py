from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtprune.kernels import greedy_select
from vtprune.kernels._shared import first_argmax


def naive(x: Tensor, count: int, first: str | int = "nearest_neighbour", objective: str = "maxmin") -> list[int]:
    """Picks of one picture from the full float64 distance matrix."""
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    distance = 1 - unit @ unit.T
    n = len(x)
    if isinstance(first, int):
        picks = [first]
    elif first == "mean":
        mean = torch.nn.functional.normalize(unit.sum(0), dim=0)
        picks = [int((1 - unit @ mean).argmax())]
    else:
        # Symmetric to the last bit, like the distances it stands for: mutual nearest neighbours tie.
        nearest = (distance.tril() + distance.tril(-1).T).fill_diagonal_(torch.inf).amin(1)
        picks = [int(nearest.argmax())]
    while len(picks) < min(count, n):
        gain = distance[picks].amin(0) if objective == "maxmin" else distance[picks].sum(0)
        gain[picks] = -torch.inf
        picks.append(int(gain.argmax()))
    return picks


def make(pictures: int, tokens: int, channels: int, seed: int = 0) -> Tensor:
    return torch.randn(pictures, tokens, channels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("objective", ["maxmin", "maxsum"])
@pytest.mark.parametrize("first", ["nearest_neighbour", "mean", "given"])
@pytest.mark.parametrize("tokens", [3, 7, 63])
def test_matches_naive(tokens: int, first: str, objective: str) -> None:
    x = make(2, tokens, 16)
    count = (tokens + 1) // 2
    start: str | Tensor = torch.tensor([tokens - 1, 0]) if first == "given" else first
    picks = greedy_select(x, count, first=start, rule=objective)
    for i in range(2):
        one = first if isinstance(start, str) else int(start[i])
        assert picks[i].tolist() == naive(x[i], count, one, objective)


def test_many_tokens() -> None:
    x = make(1, 577, 8)
    assert greedy_select(x, 20)[0].tolist() == naive(x[0], 20)


@settings(max_examples=25, deadline=None)
@given(
    pictures=st.integers(1, 3),
    tokens=st.integers(1, 20),
    count=st.integers(1, 24),
    objective=st.sampled_from(["maxmin", "maxsum"]),
    seed=st.integers(0, 9),
)
def test_picks_are_distinct_and_do_not_depend_on_the_batch(
    pictures: int, tokens: int, count: int, objective: str, seed: int
) -> None:
    x = make(pictures, tokens, 5, seed)
    picks = greedy_select(x, count, rule=objective)
    assert picks.shape == (pictures, count)
    assert picks.dtype == torch.int64
    for i, row in enumerate(picks.tolist()):
        picked = row[:tokens]
        assert sorted(set(picked)) == sorted(picked)
        assert min(picked) >= 0
        assert max(picked) < tokens
        assert row[tokens:] == [-1] * (count - tokens)
        assert row == greedy_select(x[i : i + 1], count, rule=objective)[0].tolist()


def test_smaller_count_is_a_prefix() -> None:
    x = make(2, 30, 6)
    assert torch.equal(greedy_select(x, 30)[:, :11], greedy_select(x, 11))


@pytest.mark.parametrize("objective", ["maxmin", "maxsum"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_rows_are_picked_in_order(value: float, objective: str) -> None:
    x = torch.full((1, 7, 5), value)
    assert greedy_select(x, 7, rule=objective)[0].tolist() == list(range(7))


@pytest.mark.parametrize("tokens", [7, 63, 100])
def test_duplicates_lowest_index_first(tokens: int) -> None:
    x = make(1, tokens, 37)
    x[:, 3:] = x[:, 3:4]
    picks = greedy_select(x, tokens)[0].tolist()
    assert set(picks[:4]) == {0, 1, 2, 3}
    assert picks[4:] == list(range(4, tokens))


def test_mutual_nearest_neighbours_tie_and_the_lower_index_wins() -> None:
    x = torch.zeros(1, 6, 11)
    generator = torch.Generator().manual_seed(0)
    x[0, :, :3] = torch.randn(3, generator=generator)
    x[0, :, :3] += 0.01 * torch.randn(6, 3, generator=generator)
    pair = torch.randn(8, generator=generator)
    for i, shift in ((2, 0.3), (5, -0.3)):
        x[0, i] = 0
        x[0, i, 3:] = pair
        x[0, i, 3] += shift
    assert greedy_select(x, 1).item() == 2
    assert greedy_select(x.flip(1), 1).item() == 0


def test_zero_rows_are_no_obstacle() -> None:
    x = make(1, 9, 4)
    x[0, [2, 6]] = 0
    picks = greedy_select(x, 9)[0].tolist()
    assert sorted(picks) == list(range(9))
    assert picks[0] == 2, "a zero row has distance 1 to all, more than the others have to their nearest neighbours"


def test_single_token() -> None:
    assert greedy_select(make(3, 1, 4), 5).tolist() == [[0, -1, -1, -1, -1]] * 3


@pytest.mark.parametrize("first", ["nearest_neighbour", "mean"])
@pytest.mark.parametrize("objective", ["maxmin", "maxsum"])
def test_ragged_pictures_equal_short_ones(objective: str, first: str) -> None:
    x = make(3, 12, 6)
    lengths = [12, 5, 1]
    valid = torch.arange(12) < torch.tensor(lengths).unsqueeze(1)
    x = torch.where(valid.unsqueeze(-1), x, 100 * torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(7)))
    picks = greedy_select(x, 8, first=first, rule=objective, valid=valid)
    for i, length in enumerate(lengths):
        alone = greedy_select(x[i : i + 1, :length], 8, first=first, rule=objective)[0].tolist()
        assert picks[i].tolist() == alone
    assert (greedy_select(x, 3, valid=torch.zeros_like(valid)) == -1).all()


def test_bfloat16_input_is_computed_in_float32() -> None:
    x = make(1, 40, 16).bfloat16()
    assert torch.equal(greedy_select(x, 12), greedy_select(x.float(), 12))
    assert greedy_select(x, 12)[0].tolist() == naive(x[0], 12)


@pytest.mark.parametrize("first", ["nearest_neighbour", "mean"])
def test_autocast_changes_nothing(first: str) -> None:
    x = make(1, 60, 16)
    expected = greedy_select(x, 20, first=first)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(greedy_select(x, 20, first=first), expected)


def test_non_contiguous_input_is_left_alone() -> None:
    x = make(8, 20, 2).permute(2, 1, 0)
    before = x.clone()
    assert torch.equal(greedy_select(x, 6), greedy_select(x.contiguous(), 6))
    assert torch.equal(x, before)


def test_gradients_are_no_obstacle() -> None:
    x = make(1, 6, 3).requires_grad_()
    assert greedy_select(x, 3).shape == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "minmax"}, "rule must be .* got 'minmax'"),
        ({"first": "last"}, "first must be .* got 'last'"),
        ({"features": torch.zeros(3, 4)}, "features must have the axes"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        greedy_select(**({"features": torch.zeros(1, 3, 4), "count": 2} | arguments))


@pytest.mark.parametrize("length", [1, 7, 577])
def test_first_argmax_takes_the_first(length: int) -> None:
    values = torch.zeros(2, length)
    values[1, length // 2 :] = 1.0
    best, index = first_argmax(values)
    assert best.tolist() == [0.0, 1.0]
    assert index.tolist() == [0, length // 2]
    assert first_argmax(torch.full((1, 3), -torch.inf))[1].item() == 0
    assert first_argmax(torch.full((1, 3), torch.nan))[1].item() in range(3)
