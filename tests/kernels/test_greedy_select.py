from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.conftest import DEVICE
from vtprune.kernels import greedy_select
from vtprune.kernels._shared import first_argmax

RULES = ("maxmin", "maxsum", "mmr", "dpp")
FIRSTS = ("nearest_neighbour", "mean", "importance", "given")
GOLDEN = Path(__file__).parent / "data"  # as in tests/golden: from the official code, on the parts of methods to come
SLOW = DEVICE == "cpu"  # the interpreter is slow: fewer and smaller cases


def naive(x: Tensor, count: int, rule: str, first: str | int, importance: Tensor | None, trade_off: float) -> list[int]:
    """Picks of one picture, by the definitions, in float64; the first of those that differ by rounding."""

    def best(score: Tensor) -> int:
        return int((score >= score.max() - 1e-12).nonzero()[0])

    unit = torch.nn.functional.normalize(x.double(), dim=1)
    alike, n = unit @ unit.T, len(x)
    relevance = torch.ones(n, dtype=torch.float64) if importance is None else importance.double()
    if isinstance(first, int):
        picks = [first]
    elif first == "mean":
        picks = [best(-unit @ unit.sum(0))]
    elif first == "nearest_neighbour":
        picks = [best(-alike.clone().fill_diagonal_(-2).amax(1))]
    else:
        picks = [best(relevance)]
    while len(picks) < min(count, n):
        if rule == "maxmin":
            gain = -alike[picks].amax(0)
        elif rule == "maxsum":
            gain = -alike[picks].sum(0)
        elif rule == "mmr":
            gain = trade_off * relevance - (1 - trade_off) * alike[picks].amax(0)
        else:
            spanning = unit[[i for i in picks if unit[i].any()]].T
            basis = torch.linalg.qr(spanning).Q if spanning.numel() else torch.zeros(len(unit[0]), 1).double()
            gain = relevance**2 * (unit.T - basis @ (basis.T @ unit.T)).square().sum(0)
        gain[picks] = -torch.inf
        if rule == "dpp" and gain.max() < 1e-10:
            rest = relevance.clone()
            rest[picks] = -torch.inf
            return picks + rest.argsort(descending=True, stable=True)[: min(count, n) - len(picks)].tolist()
        picks.append(best(gain))
    return picks


def make(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pick(x: Tensor, count: int, rule: str = "maxmin", first: Any = None, **more: Any) -> list[list[int]]:
    """`greedy_select` on the device of the tests, with an importance where one is needed and none is given."""
    if "importance" not in more and (rule in ("mmr", "dpp") or first == "importance"):
        more["importance"] = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(5))
    if first == "given":
        first = torch.arange(len(x)) % x.shape[1]
    more = {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in more.items()}
    first = first.to(DEVICE) if isinstance(first, Tensor) else first
    picks = greedy_select(x.to(DEVICE), count, rule=rule, first=first, **more)  # type: ignore[arg-type]
    assert picks.dtype == torch.int64
    assert picks.shape == (len(x), count)
    return picks.tolist()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("tokens", [1, 7, 63])
def test_matches_naive(backend: str, tokens: int, first: str, rule: str) -> None:
    x, count = make(2, tokens, 40), (tokens + 1) // 2
    uses = rule in ("mmr", "dpp") or first == "importance"
    importance = torch.rand(2, tokens, generator=torch.Generator().manual_seed(1)) if uses else None
    picks = pick(x, count, rule, first, importance=importance, trade_off=0.3)
    for i in range(2):
        start: str | int = i % tokens if first == "given" else first
        assert picks[i] == naive(x[i], count, rule, start, None if importance is None else importance[i], 0.3)


@pytest.mark.parametrize("rule", RULES)
def test_many_tokens(rule: str) -> None:
    x, importance = make(1, 577, 48), torch.rand(1, 577, generator=torch.Generator().manual_seed(1))
    given = importance if rule in ("mmr", "dpp") else None
    for first in ("nearest_neighbour", "mean"):
        expected = naive(x[0], 40, rule, first, importance[0], 0.5)
        assert pick(x, 40, rule, first, importance=given) == [expected]


@pytest.mark.parametrize("kind", ["random", "duplicates", "nearly duplicates", "whole numbers"])
@pytest.mark.parametrize("rule", RULES)
def test_reference_picks_what_float64_picks(rule: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """About 200 cases, most of which float32 alone gets wrong in all but the first kind."""
    monkeypatch.setenv("VTPRUNE_KERNELS", "torch")
    for seed in range(13):
        generator = torch.Generator().manual_seed(seed)
        tokens = int(torch.randint(2, 90, (1,), generator=generator))
        channels, count = (3, 8, 17, 64, 200)[seed % 5], int(torch.randint(1, tokens + 1, (1,), generator=generator))
        x = torch.randn(2, tokens, channels, generator=generator)
        half = tokens // 2
        if kind in ("duplicates", "nearly duplicates"):
            x[:, half:] = x[:, : tokens - half]
        if kind == "nearly duplicates":
            x[:, half:] += 1e-6 * torch.randn(2, tokens - half, channels, generator=generator)
        if kind == "whole numbers":
            x = x.round()
        importance = torch.rand(2, tokens, generator=generator)
        if kind == "whole numbers":
            importance = (4 * importance).round() / 4 + 0.25
        for first in FIRSTS:
            given = importance if rule in ("mmr", "dpp") or first == "importance" else None
            picks = pick(x, count, rule, first, importance=given, trade_off=0.3)
            for i in range(2):
                start: str | int = i if first == "given" else first
                assert picks[i] == naive(x[i], count, rule, start, importance[i], 0.3), (seed, first)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("first", ["nearest_neighbour", "given"])
def test_duplicates_alone_and_in_a_batch(backend: str, rule: str, first: str) -> None:
    """Equal rows around the borders of blocks: the lower index comes first, whatever else is in the batch."""
    tokens = 70 if SLOW else 577
    x = make(2, tokens, 33)
    pairs = ((0, tokens - 1), (62, 63), (63, 64), (5, tokens - 2))
    for a, b in pairs:
        x[:, b] = x[:, a]
    importance = torch.rand(2, tokens, generator=torch.Generator().manual_seed(3)).round(decimals=1) + 0.1
    for a, b in pairs:
        importance[:, b] = importance[:, a]
    uses = rule in ("mmr", "dpp") or first == "importance"
    start = torch.tensor([9, 9]) if first == "given" else first
    count = 9 if SLOW and backend == "triton" else 30
    picks = pick(x, count, rule, start, importance=importance if uses else None)
    for i, row in enumerate(picks):
        assert len(set(row)) == count
        for a, b in pairs:
            assert b not in row or (a in row and row.index(a) < row.index(b))
        alone = start[i : i + 1] if isinstance(start, Tensor) else start
        assert pick(x[i : i + 1], count, rule, alone, importance=importance[i : i + 1] if uses else None) == [row]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_rows_are_picked_in_order(backend: str, value: float, rule: str) -> None:
    x = torch.full((1, 7, 5), value)
    importance = torch.ones(1, 7) if rule in ("mmr", "dpp") else None
    assert pick(x, 7, rule, importance=importance) == [list(range(7))]


@pytest.mark.parametrize("tokens", [7, 63, 100])
def test_duplicates_lowest_index_first(backend: str, tokens: int) -> None:
    x = make(1, tokens, 37)
    x[:, 3:] = x[:, 3:4]
    (picks,) = pick(x, tokens)
    assert set(picks[:4]) == {0, 1, 2, 3}
    assert picks[4:] == list(range(4, tokens))


def test_mutual_nearest_neighbours_tie_and_the_lower_index_wins(backend: str) -> None:
    x = torch.zeros(1, 6, 11)
    generator = torch.Generator().manual_seed(0)
    x[0, :, :3] = torch.randn(3, generator=generator)
    x[0, :, :3] += 0.01 * torch.randn(6, 3, generator=generator)
    pair = torch.randn(8, generator=generator)
    for i, shift in ((2, 0.3), (5, -0.3)):
        x[0, i] = 0
        x[0, i, 3:] = pair
        x[0, i, 3] += shift
    assert pick(x, 1) == [[2]]
    assert pick(x.flip(1), 1) == [[0]]


@pytest.mark.parametrize("rule", RULES)
def test_smaller_count_is_a_prefix(backend: str, rule: str) -> None:
    x = make(2, 30, 40)
    assert [row[:11] for row in pick(x, 30, rule)] == pick(x, 11, rule)


def test_zero_rows(backend: str) -> None:
    x = make(1, 9, 4)
    x[0, [2, 6]] = 0
    (picks,) = pick(x, 9)
    assert sorted(picks) == list(range(9))
    assert picks[0] == 2, "a zero row has distance 1 to all, more than the others have to their nearest neighbours"
    assert set(pick(x, 4, "dpp", importance=torch.ones(1, 9))[0]).isdisjoint({2, 6}), "zero rows span nothing"


@pytest.mark.parametrize("rule", RULES)
def test_more_than_there_are(backend: str, rule: str) -> None:
    assert pick(make(3, 1, 4), 5, rule) == [[0, -1, -1, -1, -1]] * 3
    assert pick(make(2, 4, 8), 0, rule) == [[], []]


def test_no_tokens(backend: str) -> None:
    assert pick(torch.zeros(2, 0, 8), 3) == [[-1] * 3] * 2
    assert pick(torch.zeros(0, 4, 8), 3) == []


@pytest.mark.parametrize("first", ["nearest_neighbour", "mean", "importance"])
@pytest.mark.parametrize("rule", RULES)
def test_ragged_pictures_equal_short_ones(backend: str, rule: str, first: str) -> None:
    x, lengths = make(4, 12, 16), [12, 5, 1, 0]
    valid = torch.arange(12) < torch.tensor(lengths).unsqueeze(1)
    x = torch.where(valid.unsqueeze(-1), x, 100 * make(1, 1, 16, seed=7))
    uses = rule in ("mmr", "dpp") or first == "importance"
    importance = torch.rand(4, 12, generator=torch.Generator().manual_seed(2)) if uses else None
    picks = pick(x, 8, rule, first, importance=importance, valid=valid)
    for i, length in enumerate(lengths):
        short = None if importance is None else importance[i : i + 1, :length]
        assert [picks[i]] == pick(x[i : i + 1, :length], 8, rule, first, importance=short)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("first", FIRSTS)
def test_tokens_that_are_not_finite_come_last(backend: str, first: str, rule: str, bad: float) -> None:
    x = make(2, 11, 16)
    x[0, 0, 3] = x[0, 7, 0] = bad
    others = [i for i in range(11) if i not in (0, 7)]
    uses = rule in ("mmr", "dpp") or first == "importance"
    importance = torch.rand(2, 11, generator=torch.Generator().manual_seed(2)) if uses else None
    start = torch.tensor([others[0], 0]) if first == "given" else first
    picks = pick(x, 11, rule, start, importance=importance)
    assert picks[0][9:] == [0, 7]
    assert sorted(picks[1]) == list(range(11))
    clean = torch.tensor([0]) if first == "given" else first
    alone = pick(x[:1, others], 9, rule, clean, importance=importance[:1, others] if uses else None)[0]
    assert picks[0][:9] == [others[i] for i in alone]


@pytest.mark.parametrize("rule", ["mmr", "dpp"])
def test_importance_that_is_not_finite_comes_last(backend: str, rule: str) -> None:
    importance = torch.rand(1, 9, generator=torch.Generator().manual_seed(2))
    importance[0, 4], importance[0, 2] = torch.nan, torch.inf
    assert pick(make(1, 9, 16), 9, rule, importance=importance)[0][7:] == [2, 4]
    nothing = torch.full((1, 9), torch.nan)
    assert pick(make(1, 9, 16), 9, rule, importance=nothing) == [list(range(9))]


def test_rank_exhausted_goes_on_by_importance(backend: str) -> None:
    x, importance = make(1, 40, 8), torch.rand(1, 40, generator=torch.Generator().manual_seed(2)) + 0.1
    (picks,) = pick(x, 30, "dpp", importance=importance)
    assert len(set(picks)) == 30
    assert picks == naive(x[0], 30, "dpp", "importance", importance[0], 0.0)
    rest = importance[0, picks[8:]]
    assert (rest.diff() <= 0).all()


def test_dpp_without_importance_is_plain_volume(backend: str) -> None:
    x = make(1, 20, 32)
    assert pick(x, 6, "dpp", importance=None) == pick(x, 6, "dpp", importance=torch.ones(1, 20))


@pytest.mark.parametrize("trade_off", [0.0, 1.0])
def test_ends_of_the_trade_off(backend: str, trade_off: float) -> None:
    x, importance = make(1, 20, 16), torch.rand(1, 20, generator=torch.Generator().manual_seed(2))
    picks = pick(x, 20, "mmr", importance=importance, trade_off=trade_off)
    if trade_off == 1.0:
        assert picks == importance.argsort(descending=True).tolist()
    else:
        assert picks == pick(x, 20, "maxmin", importance.argmax(1))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_computed_in_float32(backend: str, rule: str, dtype: torch.dtype) -> None:
    x = make(1, 40, 48).to(dtype)
    assert pick(x, 12, rule) == pick(x.float(), 12, rule)


@pytest.mark.parametrize("rule", RULES)
def test_without_a_matrix(backend: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pictures: similarities are computed row by row, and pictures in chunks."""
    x = make(3, 40, 8)
    expected = {first: pick(x, 5, rule, first) for first in ("nearest_neighbour", "mean")}
    for limit in (0, 4 * 40**2):
        name = "greedy_select_triton" if backend == "triton" else "greedy_select"
        monkeypatch.setattr(importlib.import_module(f"vtprune.kernels.{name}"), "MATRIX_BYTES", limit)
        assert {first: pick(x, 5, rule, first) for first in expected} == expected


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("first", ["nearest_neighbour", "mean"])
def test_autocast_and_gradients_change_nothing(backend: str, first: str, rule: str) -> None:
    x = make(1, 40, 48).requires_grad_()
    expected = pick(x, 6, rule, first)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert pick(x, 6, rule, first) == expected


def test_non_contiguous_input_is_left_alone(backend: str) -> None:
    x = make(8, 20, 2).permute(2, 1, 0)
    before = x.clone()
    assert pick(x, 6) == pick(x.contiguous(), 6)
    assert torch.equal(x, before)


@pytest.mark.parametrize("case", sorted((GOLDEN / "idpruner").glob("*.npz")), ids=lambda path: path.stem)
def test_golden_idpruner(backend: str, case: Path) -> None:
    arrays = np.load(case)
    _, trade_off, _, count = arrays["params"].tolist()
    raw = torch.from_numpy(arrays["raw_scores"])
    importance = (raw - raw.min()) / (raw.max() - raw.min() + 1e-6)
    x = torch.from_numpy(arrays["features"])[None]
    (picks,) = pick(x, int(count), "mmr", importance=importance[None], trade_off=trade_off)
    assert picks == arrays["selected_order_fp64"].tolist()
    assert sorted(picks) == arrays["kept_sorted"].tolist()


@pytest.mark.parametrize("case", sorted((GOLDEN / "cdpruner").glob("*.npz")), ids=lambda path: path.stem)
def test_golden_cdpruner(backend: str, case: Path) -> None:
    arrays = np.load(case)
    x, relevance = torch.from_numpy(arrays["image_features"]), torch.from_numpy(arrays["relevance"])
    picks = pick(x, arrays["kept_sorted"].shape[1], "dpp", importance=relevance)
    assert picks == arrays["selected_order_fp64"].tolist()
    assert [sorted(row) for row in picks] == arrays["kept_sorted"].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "minmax"}, "rule must be 'maxmin', 'maxsum', 'mmr' or 'dpp', got 'minmax'"),
        ({"first": "last"}, "first must be .* got 'last'"),
        ({"first": torch.tensor([0, 1])}, r"first must have the shape \(1,\), got \(2,\)"),
        ({"features": torch.zeros(3, 4)}, "features must have the axes"),
        ({"count": -1}, "count must be at least 0, got -1"),
        ({"rule": "mmr"}, "rule='mmr' with first='importance' needs importance, got None"),
        ({"importance": torch.zeros(1, 3)}, "does not use importance"),
        ({"rule": "mmr", "importance": torch.zeros(1, 2)}, r"importance must have the shape \(1, 3\), got \(1, 2\)"),
        ({"valid": torch.ones(3, dtype=torch.bool)}, r"valid must have the shape \(1, 3\), got \(3,\)"),
        ({"rule": "mmr", "importance": torch.zeros(1, 3), "trade_off": 1.5}, r"trade_off must be in \[0, 1\], got 1.5"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
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


@pytest.mark.parametrize("rule", ["maxmin", "maxsum"])
def test_transposed_valid(backend: str, rule: str) -> None:
    x = make(3, 13, 8).to(DEVICE)
    valid = (torch.rand(3, 13, generator=torch.Generator().manual_seed(1)) < 0.6).to(DEVICE)
    expected = greedy_select(x, 5, rule=rule, valid=valid)
    assert torch.equal(greedy_select(x, 5, rule=rule, valid=valid.t().contiguous().t()), expected)
