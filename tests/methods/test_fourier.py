from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.inputs import pictures
from vtprune.methods import Pictures, Replace, build_method
from vtprune.methods._grids import cell_owner, fit_grid
from vtprune.methods.fourier import (
    Fourier,
    low_pass,
    low_pass_in_time,
    resampling_matrix,
)


@pytest.mark.parametrize(
    ("keep", "grid"),
    [(0.25, (12, 12)), (144, (12, 12)), (64, (8, 8)), (36, (6, 6)), (256, (16, 16)), (192, (14, 14)), (128, (11, 11))],
)
def test_budgets_of_a_square_picture(keep: float, grid: tuple[int, int]) -> None:
    assert Fourier(keep=keep).small_grid(1, 24, 24) == grid


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), share=st.floats(0.01, 1.0))
def test_fitted_grid(rows: int, columns: int, share: float) -> None:
    target = max(1, round(share * rows * columns))
    h, w = fit_grid(target, rows, columns)
    assert 1 <= h <= rows
    assert 1 <= w <= columns
    assert abs(h * columns - w * rows) < max(rows, columns) or 1 in (h, w), (
        "one side is the other's exact proportion, rounded"
    )
    # Another side would be off by at least as much: steps of a proportional grid are about one row and one column.
    assert abs(h * w - target) <= rows + columns
    assert fit_grid(rows * columns, rows, columns) == (rows, columns)
    assert fit_grid(1, rows, columns) == (1, 1)


@pytest.mark.parametrize(
    ("parameters", "grid"),
    [
        ({"side": 4}, (4, 4)),
        ({"side": (3, 5)}, (3, 5)),
        ({"side": [3, 5]}, (3, 5)),
        ({"side": 100}, (17, 31)),
        ({"ratio": 2 / 3}, (11, 20)),
        ({"ratio": 0.01}, (1, 1)),
        ({"ratio": 1.0}, (17, 31)),
        ({"keep": 1}, (1, 1)),
        ({"keep": 1.0}, (17, 31)),
    ],
)
def test_small_grid(parameters: dict, grid: tuple[int, int]) -> None:
    assert build_method("fourier", parameters).small_grid(1, 17, 31) == grid  # type: ignore[attr-defined]


def test_number_of_tokens_of_a_video_is_shared_by_its_frames() -> None:
    assert Fourier(keep=4 * 9).small_grid(4, 6, 6) == (3, 3)


@pytest.mark.parametrize("small", [(1, 1), (3, 4), (6, 8), (5, 2)])
def test_unit_gain_keeps_the_mean_of_every_map(small: tuple[int, int]) -> None:
    x = torch.randn(2, 48, 5, generator=torch.Generator().manual_seed(0))
    out = low_pass(x, (6, 8), small)
    torch.testing.assert_close(out.mean(1), x.mean(1), atol=1e-5, rtol=1e-5)
    for norm, factor in (("ortho", math.sqrt(48 / math.prod(small))), ("none", 48 / math.prod(small))):
        official = low_pass(x, (6, 8), small, norm=norm, gain="official")
        torch.testing.assert_close(official, out * factor, atol=1e-5, rtol=1e-5)


def test_low_frequencies_pass_and_high_ones_vanish() -> None:
    place = torch.arange(16, dtype=torch.float64)
    low, high = ((math.pi * k * (2 * place + 1) / 32).cos().float().view(1, 16, 1) for k in (2, 9))
    coarse = (math.pi * 2 * (2 * torch.arange(8, dtype=torch.float64) + 1) / 16).cos().float().view(1, 8, 1)
    torch.testing.assert_close(low_pass(low, (1, 16), (1, 8)), coarse, atol=1e-5, rtol=0)
    torch.testing.assert_close(low_pass(high, (1, 16), (1, 8)), torch.zeros(1, 8, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("old", [1, 7, 63])
def test_same_size_is_the_identity(old: int) -> None:
    torch.testing.assert_close(resampling_matrix(old, old), torch.eye(old), atol=1e-5, rtol=0)


def test_axes_are_not_swapped() -> None:
    x = torch.arange(6.0).view(1, 2, 3, 1)
    torch.testing.assert_close(low_pass(x.flatten(1, 2), (2, 3), (2, 1))[0, :, 0], torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(low_pass(x.flatten(1, 2), (2, 3), (1, 3))[0, :, 0], torch.tensor([1.5, 2.5, 3.5]))


def test_gradients_flow_also_after_a_run_without() -> None:
    resampling_matrix.cache_clear()
    with torch.inference_mode():
        low_pass(torch.ones(1, 12, 2), (3, 4), (2, 2))
    x = torch.randn(1, 12, 2, requires_grad=True)
    low_pass(x, (3, 4), (2, 2)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_autocast_changes_nothing() -> None:
    x = torch.randn(2, 48, 5, generator=torch.Generator().manual_seed(0))
    expected = low_pass(x, (6, 8), (3, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(low_pass(x, (6, 8), (3, 4)), expected)


@pytest.mark.parametrize(("small", "message"), [((0, 2), "rows .* from 1 to 3, got 0"), ((2, 5), "columns .* got 5")])
def test_low_pass_refuses_larger_grids(small: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        low_pass(torch.zeros(1, 12, 2), (3, 4), small)


def test_frames_are_filtered_one_by_one() -> None:
    video = pictures(2, (3, 4, 6))
    decision = Fourier(side=(2, 3)).decide(video)
    assert isinstance(decision, Replace)
    frames = [low_pass(video.encoded[:, 24 * t : 24 * (t + 1)], (4, 6), (2, 3)) for t in range(3)]
    torch.testing.assert_close(decision.features, torch.cat(frames, 1))
    assert decision.owner[0].view(3, 4, 6)[1].tolist() == [
        [6, 6, 7, 7, 8, 8],
        [6, 6, 7, 7, 8, 8],
        [9, 9, 10, 10, 11, 11],
        [9, 9, 10, 10, 11, 11],
    ]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), frames=st.integers(1, 3), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_every_cell_owns_a_slot(data: st.DataObject, frames: int, rows: int, columns: int) -> None:
    small = data.draw(st.tuples(st.integers(1, rows), st.integers(1, columns)))
    owner = cell_owner(frames, (rows, columns), small)[0]
    assert set(owner.tolist()) == set(range(frames * small[0] * small[1]))
    first = [owner.tolist().index(g) for g in range(int(owner.max()) + 1)]
    assert first == sorted(first), "cells stand in reading order"


def test_needs_the_whole_grid() -> None:
    with pytest.raises(ValueError, match="'fourier' needs the whole grid"):
        Fourier().decide(Pictures(None, torch.zeros(1, 4, 2)))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"side": 2, "ratio": 0.5}, "give side or ratio, not both; got side=2 and ratio=0.5"),
        ({"side": 0}, "side must be a whole number >= 1 or a sequence of 2, got 0"),
        ({"side": (2, 2, 2)}, r"side must be .* got \(2, 2, 2\)"),
        ({"ratio": 0.0}, r"ratio must be a number in \(0, 1\], got 0.0"),
        ({"ratio": 1.5}, "ratio must be .* got 1.5"),
        ({"norm": "l2"}, "norm must be one of 'ortho', 'none', got 'l2'"),
        ({"gain": "loud"}, "gain must be one of 'unit', 'official', got 'loud'"),
    ],
)
def test_refuses(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("fourier", parameters)


@pytest.mark.parametrize("parameters", [{"side": 2.5}, {"side": True}, {"side": "24"}, {"ratio": "big"}])
def test_refuses_other_types(parameters: dict) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(parameters))} must be .* got {next(iter(parameters.values()))!r}"):
        build_method("fourier", parameters)


def test_over_time_is_the_cosine_transform_of_every_cell() -> None:
    video = torch.randn(2, 6 * 4, 3, generator=torch.Generator().manual_seed(0))
    small = low_pass_in_time(video, 6, 4)
    matrix = resampling_matrix(6, 4)
    for cell in range(4):
        torch.testing.assert_close(small[:, cell::4], matrix @ video[:, cell::4])
    torch.testing.assert_close(low_pass_in_time(video, 6, 6), video)
    still = video[:, :4].repeat(1, 6, 1)
    torch.testing.assert_close(low_pass_in_time(still, 6, 2), still[:, :8])


@pytest.mark.parametrize(("frames", "keep", "grid"), [(3, 0.5, (6, 8)), (0.5, 0.125, (3, 4)), (1, 0.25, (6, 8))])
def test_frames_and_cells_share_the_budget(frames: float, keep: float, grid: tuple[int, int]) -> None:
    """Fewer frames leave more cells to each."""
    video = pictures(1, (6, 6, 8)) if frames != 1 else pictures(1, (4, 6, 8))
    decision = Fourier(keep=keep, frames=frames).decide(video)
    assert isinstance(decision, Replace)
    left = {3: 3, 0.5: 3, 1: 1}[frames]
    assert decision.features.shape[1] == left * grid[0] * grid[1]
    assert decision.owner.unique().tolist() == list(range(decision.features.shape[1]))
    cells = decision.owner.view(video.grid)
    assert (cells.diff(dim=0) >= 0).all(), "later frames never belong to earlier ones"


def test_refuses_no_frames() -> None:
    with pytest.raises(ValueError, match=r"frames must be a ratio in .* or a whole number of frames >= 1, got 0"):
        Fourier(frames=0)
