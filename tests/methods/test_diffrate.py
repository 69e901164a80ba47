from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import FAMILIES
from tests.methods.inputs import INFO, encoder_tokens
from vtprune.methods.diffrate import LEAST_SIZE, DiffRate, compress, table_for


def test_drops_the_tail_and_merges_the_next():
    hidden = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [5.0, 5.0]]])
    importance = torch.tensor([[0.3, 0.4, 0.2, 0.1]])  # of the four behind the class token
    step = compress(hidden, importance, torch.ones(1, 5), pruned=3, merged=2, protected=1)
    assert step.owner[0, :4].tolist() == [0, 2, 1, 1]
    assert step.keep.tolist() == [[True, True, True, True, False]]
    assert step.groups == 3
    torch.testing.assert_close(step.sizes, torch.tensor([[1.0, 2.0, 1.0]]))


def test_sizes_are_discounted_and_stay_above_zero():
    hidden = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    step = compress(hidden, torch.tensor([[2.0, 1.0]]), torch.ones(1, 2), pruned=2, merged=1)
    assert step.keep is None
    assert step.sizes.item() == pytest.approx(LEAST_SIZE)


@pytest.mark.parametrize("left", [64, 128, 192, 576])
def test_the_stretched_table(left):
    table = table_for(576, left, 23)
    flat = [count for row in table for count in row]
    assert flat == sorted(flat, reverse=True)
    assert flat[0] == flat[1] == 576
    assert flat[-1] == left


def test_no_step_where_nothing_is_shortened():
    rates = (1.0,) * 23
    assert DiffRate(merged=rates, pruned=rates).stages(INFO)[0].decide(encoder_tokens(5)) is None
    some = DiffRate(merged=(30,) * 23, pruned=(40,) * 23).stages(INFO)[0]
    assert some.prunes
    step = some.decide(encoder_tokens(5, 48))
    assert step.groups == 31
    assert step.keep.sum(1).tolist() == [41, 41]


def test_without_a_class_token_the_mean_of_all_rows_counts():
    tokens = encoder_tokens(20, 48, protected=0)
    attention = (tokens.queries @ tokens.head_keys.transpose(-1, -2) * tokens.scale).softmax(-1).mean((1, 2))
    step = DiffRate(keep=12).stages(INFO)[0].decide(dataclasses.replace(tokens, layer=22))
    kept = attention.argsort(1, descending=True)[:, :12]
    assert torch.equal(step.owner.gather(1, kept), torch.arange(12).expand(2, -1))


def test_merging_only_works_where_patches_are_joined():
    model = FAMILIES["internvl"].model()
    with pytest.raises(ValueError, match="diffrate cannot work on"):
        vtprune.apply(model, "diffrate")
    vtprune.apply(model, "diffrate", prune=False)
    vtprune.remove(model)


def test_refuses():
    with pytest.raises(ValueError, match="needs as many values in merged"):
        DiffRate(pruned=(0.5,))
    with pytest.raises(ValueError, match="merged must have one value for each of 23 encoder blocks, got 1"):
        DiffRate(merged=(0.5,)).stages(INFO)
