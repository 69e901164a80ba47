"""GemFilter: scores and their smoothing by hand, and what is kept in a model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.engine.test_trial import bare
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO
from vtprune.methods.gemfilter import GemFilter, match, smoothed


def test_layers():
    (stage,) = GemFilter().stages(INFO)
    assert (stage.layers, stage.trial) == ((0,), 13)
    (stage,) = GemFilter().stages(dataclasses.replace(INFO, decoder_layers=28))
    assert stage.trial == 11
    with pytest.raises(ValueError, match="layer must be a layer from 1 to 31"):
        GemFilter(layer=0).stages(INFO)
    with pytest.raises(ValueError, match="pool must be an odd whole number"):
        GemFilter(pool=4)


def test_match_adds_up_plain_products_of_all_heads():
    query = torch.tensor([[[1.0, 0.0], [2.0, 1.0], [0.0, 3.0], [-1.0, 1.0]]])
    keys = torch.tensor([[[[1.0, 2.0], [0.0, 1.0]], [[3.0, 1.0], [1.0, 1.0]]]])
    # Heads 0 and 1 look at the first keys, 2 and 3 at the second ones.
    assert match(query, keys).tolist() == [[1 + 4 + 3 - 2, 0 + 1 + 3 + 0]]


def test_a_mean_stays_within_its_picture_and_counts_what_is_missing():
    scores = torch.tensor([[10.0, 0.0, 5.0, 30.0, 20.0, 99.0]])
    picture = torch.tensor([[0, 0, 0, 1, 1, -1]])
    assert smoothed(scores, picture, 5)[0, :5].tolist() == [3, 3, 3, 10, 10]
    torch.testing.assert_close(smoothed(scores, picture, 3)[0, :5], torch.tensor([10, 15, 5, 50, 50]) / 3)
    assert torch.equal(smoothed(scores, picture, 1), scores)
    assert smoothed(scores[:, :1], picture[:, :1], 5).tolist() == [[2]]


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "qwen3_vl"])
def test_what_is_kept_in_a_model(name):
    """Token by token, from the untouched model's query and keys."""
    family = FAMILIES[name]
    model, row = family.model(), family.row(5, IMAGE, 7)
    _, query, keys = bare(model, family.inputs(row))
    keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], 1)
    scores = (query[0, :, 0, None] * keys[0]).sum((0, 2))[row.visual].tolist()
    padded = [0, 0, *scores, 0, 0]
    means = [sum(padded[i : i + 5]) / 5 for i in range(len(scores))]
    best = sorted(sorted(range(len(means)), key=lambda i: -means[i])[:7])
    with vtprune.applied(model, GemFilter(keep=7, layer=3)):
        model(**family.inputs(row))
        assert list(vtprune.report(model).pictures[0].kept) == best
