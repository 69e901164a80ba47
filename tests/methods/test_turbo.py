"""Turbo: similarity less attention, on the side that would be merged away."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import INFO, encoder_tokens, pictures
from vtprune.methods import Place
from vtprune.methods.tome import merge_step
from vtprune.methods.turbo import Turbo, attention_weight, merge_in_rounds, turbo_step


@pytest.mark.parametrize(("tokens", "protected"), [(37, 1), (38, 1), (36, 0), (37, 0), (3, 0), (2, 0)])
def test_without_attention_it_is_tome(tokens, protected):
    keys = torch.randn(3, tokens, 8, generator=torch.Generator().manual_seed(tokens))
    for merges in (1, tokens // 3, tokens):
        expected = merge_step(keys, merges, protected)
        got = turbo_step(keys, torch.zeros(3, tokens), merges, protected)
        assert got.groups == expected.groups
        assert torch.equal(got.owner, expected.owner)


def test_valuable_tokens_stay():
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.2], [0.0, 1.0]]])
    plain = turbo_step(keys, torch.zeros(1, 4), 1)
    assert plain.owner[0, 0] == plain.owner[0, 1]
    spared = turbo_step(keys, torch.tensor([[0.5, 0.0, 0.0, 0.0]]), 1)
    assert spared.owner[0, 2] == spared.owner[0, 1] != spared.owner[0, 0]
    # Those at odd places are never protected.
    assert torch.equal(turbo_step(keys, torch.tensor([[0.0, 9.0, 0.0, 9.0]]), 1).owner, plain.owner)


def test_every_token_merges_whatever_its_value():
    keys = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
    value = torch.rand(1, 9, generator=torch.Generator().manual_seed(1))
    step = turbo_step(keys, value, 100, protected=1)
    assert step.groups == 5
    assert torch.equal(step.owner, turbo_step(keys, 0 * value, 100, protected=1).owner)


def test_weight_decays_from_its_centre():
    assert attention_weight(5, 1, 0, 7) == 150
    assert attention_weight(1, 0.9, 3, 5) == pytest.approx(30 * 0.81)


def test_few_tokens_are_left_alone():
    assert Turbo(r=4, r_threshold=50).decide(encoder_tokens(patches=48), layers=4) is None
    assert Turbo(r=4, r_threshold=49).decide(encoder_tokens(patches=48), layers=4).groups == 45


def test_the_balance_follows_the_number_of_tokens():
    tokens = encoder_tokens(patches=48)
    scaled = Turbo(r=8, alpha=5.0 * 577 / 49).decide(tokens, layers=4)
    assert torch.equal(scaled.owner, Turbo(r=8, balance="fixed").decide(tokens, layers=4).owner)
    assert not torch.equal(scaled.owner, Turbo(r=8, alpha=0).decide(tokens, layers=4).owner)


CLOSED = dataclasses.replace(INFO, encoder_stages=False)


def test_rounds_merge_groups_by_their_means_and_sums():
    # Tokens 0 and 1 merge first; their mean then resembles 3, and stands where 1 was, until that merges into 3.
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]])
    nothing = torch.zeros(1, 5)
    assert merge_in_rounds(features, nothing, [(1, 0.0)]).tolist() == [[1, 1, 2, 3, 4]]
    # Left are 2, 4, 1, 3: at even places 2 and 1 (the mean), at odd ones 4 and 3.
    assert merge_in_rounds(features, nothing, [(1, 0.0), (1, 0.0)]).tolist() == [[3, 3, 2, 3, 4]]
    # What the pair receives together spares it, and 2 merges into the first of its equals.
    attention = torch.tensor([[0.4, 0.4, 0.0, 0.1, 0.1]])
    assert merge_in_rounds(features, attention, [(1, 0.0), (1, 9.0)]).tolist() == [[1, 1, 4, 3, 4]]


def test_where_blocks_cannot_merge_it_does_so_at_the_output():
    (stage,) = Turbo(keep=0.25).stages(CLOSED)
    assert (stage.place, stage.scope, stage.budget) == (Place.ENCODER_OUTPUT, "tile", 0.25)
    batch = pictures(grid=(1, 6, 8))
    keep = stage.decide(batch)
    assert keep.mask.sum(1).tolist() == [12, 12]
    assert torch.equal(keep.mask.gather(1, keep.owner), torch.ones_like(keep.mask))
    new = keep.mix(batch.projected)
    group = keep.owner[0] == keep.owner[0, 5]
    torch.testing.assert_close(new[0, keep.owner[0, 5]], batch.projected[0, group].mean(0))
    # More is left than two blocks can merge: rounds are added.
    shallow = dataclasses.replace(CLOSED, encoder_layers=2)
    assert Turbo(keep=3).stages(shallow)[0].decide(batch).mask.sum(1).tolist() == [3, 3]
    # The paper's own schedule is carried out as it stands.
    assert Turbo(r=(8, 40)).stages(shallow)[0].decide(batch).mask.sum(1).tolist() == [20, 20]
    assert Turbo(r=0).stages(shallow)[0].decide(batch) is None
