"""TransPrune: the specification's counts, transitions by hand, and its traps."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO, visual_tokens
from tests.methods.test_pyramiddrop import counts
from vtprune.methods.transprune import TransPrune, score, transition


def test_paper_preset():
    (stage,) = TransPrune().stages(INFO)
    assert counts(TransPrune(), [576]) == {7: 504, 9: 360, 12: 72}
    assert [o.layers for o in stage.observations] == [(6, 7, 8, 9, 10, 11)] * 2
    (stage,) = TransPrune().stages(dataclasses.replace(INFO, decoder_layers=28))
    assert stage.layers == (6, 8, 11)
    assert counts(TransPrune(layers=(2, 3), shares=(0.66, 0.1)), [49]) == {2: 32, 3: 5}
    assert counts(TransPrune(layers=(2, 4, 6, 8), keep=0.2), [100]) == {2: 80, 4: 60, 6: 40, 8: 20}


def test_transition_by_hand():
    """Length ratio times the share of exp(1 - cosine); padding is no part of the sum."""
    g = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 5, 6, generator=g), torch.randn(2, 5, 6, generator=g)
    valid = torch.ones(2, 5, dtype=torch.bool)
    valid[1, :2] = False
    found = transition(before, after, valid)
    for row in range(2):
        turns = {}
        for slot in valid[row].nonzero()[:, 0].tolist():
            a, b = before[row, slot].double(), after[row, slot].double()
            turns[slot] = math.exp(1 - float(a @ b / a.norm() / b.norm())), float(b.norm() / a.norm())
        total = sum(turn for turn, _ in turns.values())
        for slot, (turn, ratio) in turns.items():
            assert float(found[row, slot]) == pytest.approx(ratio * turn / total, rel=1e-5)
    torch.testing.assert_close(transition(before[1:, 2:], after[1:, 2:]), found[1:, 2:])


def test_both_parts_count_the_same():
    valid = torch.ones(1, 4, dtype=torch.bool)
    transitions, attention = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.04, 0.03, 0.02, 0.01]])
    torch.testing.assert_close(score(transitions, attention, valid), torch.full((1, 4), 0.5))
    torch.testing.assert_close(score(0 * transitions, attention, valid), attention / 0.1)  # no layer was watched yet
    torch.testing.assert_close(score(transitions, None, valid), transitions / 10)


def test_without_guidance_no_attention_is_asked_for():
    (stage,) = TransPrune(guidance=0).stages(INFO)
    assert not stage.signals
    tokens = dataclasses.replace(visual_tokens(torch.rand(1, 16), [[16]], 7), attention=None)
    assert stage.decide(tokens).mask.sum() == 14


def test_what_cannot_be_watched():
    with pytest.raises(ValueError, match="watched must be a layer from 0 to 31"):
        TransPrune(watched=(32,)).stages(INFO)
    with pytest.raises(ValueError, match="guidance must be a number"):
        TransPrune(guidance=-1)


@torch.no_grad()
def test_passing_by_watched_layers_is_refused():
    model = FAMILIES["llava-clip"].model()
    with pytest.raises(ValueError, match="transprune asks for signals of decoder layers that tokens pass by"):
        vtprune.apply(model, ["showui:skip_layers=[2]", "transprune:layers=[3],shares=[0.5]"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "qwen2_5_vl"])
def test_batch_equals_its_rows_alone(name):
    """Rows of different lengths and numbers of pictures, left padding, without a batch-wide softmax."""
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(1, IMAGE, 2, IMAGE, 4, seed=4)]
    with vtprune.applied(family.model(), "transprune", keep=4, layers=(2, 4), guidance=0.5) as model:
        together = model(**family.inputs(*rows)).logits[:, -1]
        for i, row in enumerate(rows):
            alone = model(**family.inputs(row)).logits[0, -1]
            torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=1e-4)
