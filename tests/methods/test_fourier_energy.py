"""fourier by energy: a grid of its own for every map."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.inputs import pictures
from vtprune.methods import Pictures, Replace
from vtprune.methods._spectrum import cosine_basis, energies, strongest_blocks
from vtprune.methods.fourier import Fourier

GRID = (8, 12)


def waves(down: int, across: int, grid: tuple[int, int] = GRID) -> torch.Tensor:
    """A map (rows * columns, 3) with a constant part and one frequency."""
    rows, columns = (cosine_basis(side)[k] for side, k in zip(grid, (down, across), strict=True))
    return 2 + (rows[:, None] * columns).flatten()[:, None] * torch.tensor([3.0, -1.0, 0.5])


def shown(*maps: torch.Tensor, grid: tuple[int, int] = GRID) -> Pictures:
    return Pictures((1, *grid), torch.stack(maps))


def filtered(method: Fourier, batch: Pictures) -> Replace:
    decision = method.decide(batch)
    assert isinstance(decision, Replace)
    return decision


def cells(decision: Replace) -> list[int]:
    return [len(set(row)) for row in decision.owner.tolist()]


def test_energies_sum_up_to_those_of_the_map() -> None:
    x = torch.randn(2, 96, 5, generator=torch.Generator().manual_seed(0))
    found = energies(x, GRID)
    torch.testing.assert_close(found.sum((1, 2)), x.square().sum((1, 2)))
    torch.testing.assert_close(found[:, 0, 0], x.sum(1).square().sum(1) / 96)


def test_the_block_follows_the_picture() -> None:
    batch = shown(torch.full((96, 3), 7.0), waves(0, 7), waves(5, 0), waves(2, 3))
    blocks = strongest_blocks(energies(batch.encoded, GRID), most=24, share=0.9)
    assert blocks.tolist() == [[1, 1], [1, 8], [6, 1], [3, 4]]
    decision = filtered(Fourier(keep=24, energy=0.9), batch)
    assert cells(decision) == [1, 8, 6, 12]
    assert decision.features.shape == (4, 12, 3)
    assert decision.ragged
    torch.testing.assert_close(decision.features[0, 0], torch.full((3,), 7.0))
    # The same wave, sampled at eight places instead of twelve.
    wave = waves(0, 7, (8, 8))[:8] - 2
    torch.testing.assert_close(decision.features[1, :8], 2 + wave * (8 / 12) ** 0.5)


def test_a_budget_that_is_too_small_is_spent_where_most_energy_lies() -> None:
    # A strong wave across that no block of 4 cells reaches, weaker ones that it does.
    picture = 10 * waves(0, 7) + waves(3, 0) + 0.5 * waves(0, 3)
    assert strongest_blocks(energies(picture[None], GRID), most=4, share=0.9).tolist() == [[4, 1]]
    assert strongest_blocks(energies(picture[None], GRID), most=8, share=0.9).tolist() == [[1, 8]]


def test_ties() -> None:
    energy = torch.zeros(2, 3, 3)
    energy[:, 0, 0] = 5.0
    energy[0, 0, 1] = energy[0, 1, 0] = 1.0
    # Fewer rows of equals; nothing but the constant needs one cell, whatever is allowed.
    assert strongest_blocks(energy, most=2).tolist() == [[1, 2], [1, 1]]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), data=st.data())
def test_against_the_slow_way(rows: int, columns: int, data: st.DataObject) -> None:
    most = data.draw(st.integers(1, rows * columns))
    share = data.draw(st.sampled_from([0.3, 0.7, 0.95]))
    energy = torch.rand(1, rows, columns, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    ((h, w),) = strongest_blocks(energy, most, share).tolist()
    assert h * w <= most
    varying = energy[0].clone()
    varying[0, 0] = 0

    def held(a: int, b: int) -> float:
        return float(varying[:a, :b].sum() / varying.sum().clamp_min(1e-9))

    others = [(a, b) for a in range(1, rows + 1) for b in range(1, columns + 1) if a * b <= most]
    enough = [(a, b) for a, b in others if held(a, b) >= share + 1e-4]
    if enough:
        assert h * w <= min(a * b for a, b in enough)
    if held(h, w) < share - 1e-4:
        assert held(h, w) >= max(held(a, b) for a, b in others) - 1e-4


@pytest.mark.parametrize("shares", [(0.2, 0.5, 0.8, 0.95, 1.0)])
def test_more_energy_never_takes_fewer_cells(shares: tuple[float, ...]) -> None:
    energy = torch.rand(20, *GRID, generator=torch.Generator().manual_seed(3)) ** 4
    counts = torch.stack([strongest_blocks(energy, 96, share).prod(1) for share in shares])
    assert (counts.diff(dim=0) >= 0).all()
    assert (counts[-1] == 96).all()


def test_the_same_grid_gives_what_plain_fourier_gives() -> None:
    batch = shown(waves(2, 3), waves(2, 3) + waves(1, 1))
    decision, plain = filtered(Fourier(keep=24, energy=0.99), batch), filtered(Fourier(side=(3, 4)), batch)
    torch.testing.assert_close(decision.features, plain.features)
    assert torch.equal(decision.owner, plain.owner)


def test_every_frame_has_a_grid_of_its_own() -> None:
    frames = torch.cat((waves(0, 0), waves(0, 7), waves(3, 0)))[None]
    decision = filtered(Fourier(keep=24, energy=0.9), Pictures((3, *GRID), frames))
    assert decision.features.shape == (1, 24, 3)
    assert [sorted(set(part.tolist())) for part in decision.owner[0].split(96)] == [
        [0],
        [*range(8, 16)],
        [16, 17, 18, 19],
    ]
    assert decision.again is not None
    torch.testing.assert_close(decision.again(2 * frames), 2 * decision.features)
    # Over time the constant is all that is left of frames that are alike.
    still = Pictures((3, *GRID), waves(0, 7).repeat(3, 1)[None])
    once = filtered(Fourier(keep=24, energy=0.9, frames=1), still)
    assert sorted(set(once.owner[0].tolist())) == [*range(8)]


def test_levels_share_the_decision_and_gradients_flow() -> None:
    batch = pictures(grid=(1, *GRID))
    decision = filtered(Fourier(keep=30, energy=0.8), batch)
    other = torch.randn(2, 96, 7, requires_grad=True)
    assert decision.again is not None
    made = decision.again(other)
    assert made.shape == (2, decision.features.shape[1], 7)
    made.sum().backward()
    assert other.grad is not None


def test_a_batch_equals_its_pictures_alone() -> None:
    batch = shown(waves(0, 7), waves(3, 2), waves(0, 0))
    together = filtered(Fourier(keep=24, energy=0.9), batch)
    for i, one in enumerate(batch.encoded):
        alone = filtered(Fourier(keep=24, energy=0.9), dataclasses.replace(batch, encoded=one[None]))
        assert torch.equal(together.owner[i : i + 1], alone.owner)
        torch.testing.assert_close(together.features[i, : alone.features.shape[1]], alone.features[0])


@pytest.mark.parametrize("energy", [0, 1.5, -0.1])
def test_refuses_shares_that_are_none(energy: float) -> None:
    with pytest.raises(ValueError, match=r"energy must be a number in \(0, 1\]"):
        Fourier(energy=energy)
