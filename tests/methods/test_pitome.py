from __future__ import annotations

import pytest
import torch

from tests.methods.inputs import INFO, encoder_tokens
from vtprune.methods.pitome import PiToMe, energy, energy_matching, energy_owner, ratio_schedule, removed


@pytest.mark.parametrize(
    ("ratio", "left"), [(0.975, 330), (0.95, 183), (0.925, 101), (0.9, 54), (0.875, 30), (0.85, 17)]
)
def test_ratios_of_the_paper(ratio, left):
    there = 576
    for layer in range(23):
        there -= removed(there + 1 if layer < 13 else there, ratio)
    assert there == left


@pytest.mark.parametrize("left", [576, 400, 192, 128, 64, 17])
@pytest.mark.parametrize("protected", [0, 1])
def test_schedule_reaches_the_budget(left, protected):
    schedule = ratio_schedule(576, left, 23, 13, protected)
    there = 576
    for merges in schedule:
        assert 0 <= merges <= there // 2
        there -= merges
    assert there == left


def test_rounding_is_the_authors():
    assert removed(30, 0.9) == int(30 - 30 * 0.9)


def test_look_alikes_merge_and_loners_are_spared():
    metric = torch.eye(8)[None].clone()
    metric[0, 2] = metric[0, 5] = metric[0, 6] = metric[0, 1]  # four of a kind
    high = energy(metric, 0.5)
    assert set(high[0].topk(4).indices.tolist()) == {1, 2, 5, 6}
    found = energy_matching(metric, 2, 0.5)
    assert found.sources.tolist() == [[1, 5]]
    assert found.targets.tolist() == [[2, 6]]
    assert found.destinations.tolist() == [[0, 0]]
    assert found.spared.tolist() == [[0, 3, 4, 7]]
    owner, groups = energy_owner(metric, 2, 0.5)
    assert groups == 6
    assert owner[0, 1] == owner[0, 5] == owner[0, 2] != owner[0, 6]


def test_energy_by_blocks_is_the_same():
    metric = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(energy(metric, 0.3, block=7), energy(metric, 0.3))


def test_more_than_half_is_cut():
    assert PiToMe(ratio=0.1).stages(INFO)[0].decide(encoder_tokens(20, 48)).groups == 25


def test_early_blocks_merge_plainly():
    (stage,) = PiToMe(ratio=0.9).stages(INFO)
    assert stage.after_block
    tokens = encoder_tokens(12, 48)
    assert stage.decide(tokens).groups == 49 - removed(49, 0.9)
    assert not stage.decide(tokens).weighted


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"ratio": 0.0}, r"ratio must be a number in \(0, 1\]"),
        ({"features": "values"}, "features must be one of"),
        ({"early": "no"}, "early must be one of"),
    ],
)
def test_refuses(parameters, message):
    with pytest.raises(ValueError, match=message):
        PiToMe(**parameters)


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_no_merges_spare_everything(tokens):
    metric = torch.randn(2, tokens, 4, generator=torch.Generator().manual_seed(0))
    found = energy_matching(metric, 0, 0.5)
    assert found.spared.sort(dim=1).values.tolist() == [list(range(tokens))] * 2
    assert found.sources.shape == found.targets.shape == found.destinations.shape == (2, 0)
    for spares in (True, False):
        owner, groups = energy_owner(metric, 0, 0.5, spares=spares)
        assert groups == tokens
        assert owner.sort(dim=1).values.tolist() == [list(range(tokens))] * 2
