"""AIM: rounds of merging, where merged tokens stand, and what they are made of."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO, pictures
from vtprune.methods import ModelInfo
from vtprune.methods.aim import AIM, halvings, last_block, merge, merge_rounds, places
from vtprune.methods.base import EncoderSignal


@pytest.mark.parametrize(
    ("tokens", "count", "leaving"),
    [(196, 49, [98, 49]), (576, 252, [288, 36]), (576, 72, [288, 144, 72]), (169, 42, [84, 42, 1]), (5, 5, [])],
)
def test_rounds_of_the_presets(tokens, count, leaving):
    assert halvings(tokens, count) == leaving


def test_one_round_by_hand():
    """Even tokens look for an odd one; what stays alone comes first; means count every token once."""
    x = torch.tensor([[[1.0, 0], [3, 0], [0, 1], [0, 2], [2, 0.1], [1, 1]]])
    (one,) = merge_rounds(x, [2])
    # 0 joins 1, 2 joins 3; 4 is alone, then the odd tokens in order.
    assert one.owner.tolist() == [[1, 1, 2, 2, 0, 3]]
    assert one.source.tolist() == [[4, 1, 3, 5]]
    torch.testing.assert_close(merge(x, [one])[0], torch.tensor([[[2.0, 0.1], [2, 0], [0, 1.5], [1, 1]]]))


def test_a_round_of_none_changes_nothing():
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    first, second, third = merge_rounds(x, [0, 2, 0])
    assert torch.equal(merge(x, [first])[0], x)
    assert torch.equal(merge(x, [first, second, third])[2], merge(x, merge_rounds(x, [2]))[0])
    assert torch.equal(places([first], 5)[0], torch.arange(5).expand(2, -1))


def test_a_second_round_averages_averages():
    x = torch.tensor([[[0.0, 1], [3, 1], [6, 1], [9, 1]]])
    same = torch.ones(1, 4, 2)  # every even token joins the first odd one
    rounds = merge_rounds(same, [2, 1])
    first, second = merge(x, rounds)
    assert first[0, :, 0].tolist() == [3.0, 9.0]  # of 0, 3 and 6; 9 stays
    assert second[0, :, 0].tolist() == [6.0]  # and not 4.5, the mean of all four
    where, owner = places(rounds, 4)
    assert where.tolist() == [[3]]
    assert owner.tolist() == [[3, 3, 3, 3]]


def test_owners_stay_and_features_land_where_they_stand():
    batch = pictures(2, (1, 5, 9))
    decision = AIM(keep=11).decide(batch)
    assert decision.mask.gather(1, decision.owner).all()
    assert torch.equal(decision.owner[decision.mask], torch.arange(45).repeat(2, 1)[decision.mask])
    rounds = merge_rounds(batch.projected, halvings(45, 11))
    expected = merge(batch.projected, rounds)[-1]
    new = decision.mix(batch.projected)
    torch.testing.assert_close(new.gather(1, places(rounds, 45)[0][..., None].expand_as(expected)), expected)


def test_keys_say_what_is_similar():
    assert last_block(INFO) == 23, "CLIP's layer behind the one that is used"
    assert last_block(dataclasses.replace(INFO, attention_blocks=(7, 15))) == 15
    (stage,) = AIM(metric="keys", keep=12).stages(INFO)
    signal = EncoderSignal("keys", 23)
    assert signal in stage.signals
    batch = pictures(1, signals=stage.signals)
    by_keys = stage.decide(batch)
    other = dataclasses.replace(batch, projected=batch.encoded)
    assert torch.equal(stage.decide(other).mask, by_keys.mask)
    with pytest.raises(ValueError, match="use metric='features'"):
        AIM(metric="keys").stages(ModelInfo("x", 4, 4, False))


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "llava-siglip", "llava_next", "qwen3_vl", "internvl"])
def test_keys_of_every_encoder(name):
    family = FAMILIES[name]
    with vtprune.applied(family.model(), "aim", keep=0.5, metric="keys") as model:
        model(**family.inputs(family.row(2, IMAGE, 3)))
        report = vtprune.report(model)
    assert report.visual_tokens_after < report.visual_tokens_before


def test_gradients_reach_every_token():
    x = torch.randn(1, 12, 16, requires_grad=True)
    batch = dataclasses.replace(pictures(1, (1, 3, 4)), projected=x.detach())
    decision = AIM(keep=3).decide(batch)
    decision.mix(x)[decision.mask].sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()
