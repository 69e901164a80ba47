"""AIM: rounds of merging, where merged tokens stand, what they are made of, and who leaves the decoder when."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.golden.adapters import outputs
from tests.methods.inputs import INFO, pictures, visual_tokens
from tests.reference import reference, run
from vtprune.methods import ModelInfo
from vtprune.methods._rounds import halvings, merge, merge_rounds, places
from vtprune.methods.aim import AIM, importance, last_block, shares_left
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


@pytest.mark.parametrize(("first", "layers", "last"), [(14, 28, 22), (13, 32, 21)])
def test_schedule_of_the_paper(first, layers, last):
    shares = shares_left(first, 0.125, layers)
    assert list(shares) == list(range(first + 1, last + 1))
    assert list(shares.values()) == [1 - i / 8 for i in range(1, 9)]


def test_schedule_ends_with_the_model():
    assert shares_left(2, 0.25, 5) == {3: 0.75, 4: 0.5}
    (_, stage) = AIM(prune_from=2, prune_step=0.25).stages(dataclasses.replace(INFO, decoder_layers=5))
    assert stage.layers == (3, 4)
    with pytest.raises(ValueError, match="prune_from must be a layer from 0 to 30"):
        AIM(prune_from=31).stages(INFO)


def test_pruning_of_rows_with_different_numbers_of_tokens():
    """A batch equals its rows alone, shares are of what arrived first, and what has left does not come back."""
    arrived = [[12, 5], [9, 0], [0, 0]]
    attention = torch.rand(3, 17, generator=torch.Generator().manual_seed(0))
    method, shares, memory = AIM(prune_from=1, prune_step=0.25), shares_left(1, 0.25, 6), {}
    assert shares == {2: 0.75, 3: 0.5, 4: 0.25, 5: 0.0}
    for layer, counts in ((2, [12, 6, 0]), (4, [4, 2, 0]), (5, [0, 0, 0])):
        decision = method.prune(visual_tokens(attention, arrived, layer, memory), shares)
        assert decision.mask.sum(1).tolist() == counts
        for row, n in enumerate((17, 9, 1)):
            one = visual_tokens(attention[row : row + 1, :n], arrived[row : row + 1], layer)
            assert torch.equal(method.prune(one, shares).mask[0], decision.mask[row, :n])
    later = visual_tokens(attention[:, :6], [[6, 0], [3, 0], [0, 0]], 3, memory)
    assert method.prune(later, shares).mask.sum(1).tolist() == [6, 3, 0], "half of 17 and of 9 is more than there is"


def test_more_merges_than_half():
    """The authors' code cuts a round to half of the tokens."""
    out = outputs("aim", {"x": np.random.default_rng(0).normal(size=(3, 25, 4)), "rounds": np.array([100])})
    assert out["out_0"].shape == (3, 13, 4)


def votes_by_hand(q, k, scale, seen, asking):
    """Page rank with whole matrices, float64: q, k (heads, slots, head_dim), seen (keys,), asking (slots,)."""
    slots, keys = q.shape[1], k.shape[1]
    logits = (q.double() @ k.double().transpose(1, 2)) * scale / 0.1
    mask = torch.arange(keys) <= torch.arange(keys - slots, keys)[:, None]
    shares = logits.masked_fill(~(mask & seen), -torch.inf).softmax(-1)[..., keys - slots :]
    votes = torch.full((len(q), 1, slots), 1 / slots).double()
    for _ in range(5):
        votes = (votes * asking) @ shares.nan_to_num(0)
    return votes.square().mean(0).sqrt()[0]


@pytest.mark.parametrize("earlier", [0, 4])
def test_importance_by_hand(earlier):
    """With padding, with keys that heads share, and with keys of an earlier turn."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 11, 8, generator=g), torch.randn(2, 2, earlier + 11, 8, generator=g)
    valid = torch.ones(2, earlier + 11, dtype=torch.bool)
    valid[1, earlier : earlier + 3] = False
    found = importance(q, k, 0.35, valid=valid, asking=valid[:, earlier:])
    for row in range(2):
        heads = k[row].repeat_interleave(2, 0)
        expected = votes_by_hand(q[row], heads, 0.35, valid[row], valid[row, earlier:])
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-4, atol=1e-9)


PRUNED = ("aim", {"keep": 0.6, "prune_from": 1, "prune_step": 0.4})


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_pruning_equals_the_bare_model(name):
    family = FAMILIES[name]
    model = family.model()
    rows = [family.row(5, IMAGE, 7), family.row(3, IMAGE, 2, IMAGE, 6, seed=1)]
    for row in rows:
        (decided,), (fed,), logits, report = run(model, family, PRUNED, row)
        expected, _ = reference(model, family, row, decided, fed)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        counts = [(p.layer, p.tokens_after) for p in report.places if p.layer is not None]
        assert [layer for layer, _ in counts] == [2, 3, 4]
        newlines = report.visual_tokens_before - sum(len(m.tokens) for p in report.pictures for m in p.maps)
        merged = sum(len(p.entered) for p in report.pictures)
        if not newlines:
            assert [n for _, n in counts] == [int(merged * 0.6), int(merged * 0.2), 0]
        assert counts[-1][1] == 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "llava_next", "qwen3_vl"])
def test_pruned_batch_equals_its_rows_alone(name):
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(9, seed=2), family.row(1, IMAGE, 2, IMAGE, 4, seed=4)]
    settings = dict(max_new_tokens=4, do_sample=False)
    with vtprune.applied(family.model(), PRUNED[0], **PRUNED[1]) as model:
        x = family.inputs(*rows)
        together = [model(**x).logits[:, -1], model(**x, use_cache=False).logits[:, -1]]
        answers = model.generate(**x, **settings)[:, -4:]
        for i, row in enumerate(rows):
            alone = family.inputs(row)
            for logits in together:
                torch.testing.assert_close(logits[i], model(**alone).logits[0, -1], atol=1e-4, rtol=1e-4)
            assert torch.equal(answers[i], model.generate(**alone, **settings)[0, -4:])
