from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import INFO, encoder_tokens
from vtprune.methods import ModelInfo, build_method
from vtprune.methods.ats import ATS, sampled, significance


def brute(scores, samples):
    """The definition, number by number."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    total, cumulated = 0.0, []
    for i in order:
        total += scores[i]
        cumulated.append(total)
    share = [(c - cumulated[0]) / (cumulated[-1] - cumulated[0]) for c in cumulated]
    start = min(s for s in share if s > 0)
    taken = set()
    for k in range(samples):
        height = start + (1 - start) * (k / (samples - 1) if samples > 1 else 1)
        taken.add(order[min(range(len(share)), key=lambda n: abs(share[n] - height))])
    return taken


@pytest.mark.parametrize("samples", [1, 2, 5, 12, 30, 100])
def test_equals_the_definition(samples):
    scores = torch.rand(4, 30, generator=torch.Generator().manual_seed(samples)) ** 3
    for row, mask in zip(scores.double().tolist(), sampled(scores, samples), strict=True):
        assert set(mask.nonzero().squeeze(1).tolist()) == brute(row, samples)


def test_least_patch_is_never_taken_and_the_most_always():
    scores = torch.tensor([[3.0, 1.0, 2.0, 8.0]])
    assert sampled(scores, 1).tolist() == [[False, False, False, True]]
    assert sampled(scores, 50).tolist() == [[True, False, True, True]]


def test_concentrated_importance_keeps_few():
    flat, peaked = torch.ones(1, 40) + torch.arange(40) * 1e-3, torch.ones(1, 40)
    peaked[0, 7] = 1e4
    assert sampled(flat, 20).sum() == 20
    assert sampled(peaked, 20).sum() <= 3


def test_padding_changes_nothing():
    scores = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    valid = torch.arange(12) < torch.tensor([[12], [9]])
    mask = sampled(scores, 6, valid)
    assert torch.equal(mask[1, :9], sampled(scores[1:, :9], 6)[0])
    assert not mask[1, 9:].any()


def test_cropping_as_the_authors_do():
    scores = torch.arange(1.0, 21.0)[None]
    assert sampled(scores, 4, crop=True).nonzero()[:, 1].min() >= 16
    assert sampled(scores, 4).nonzero()[:, 1].min() < 16


def test_one_patch_and_equal_scores():
    assert sampled(torch.ones(1, 1), 3).tolist() == [[True]]
    assert sampled(torch.zeros(1, 4), 3).any()
    assert significance(torch.zeros(1, 3), torch.ones(1, 3, 2)).tolist() == [[0.0] * 3]


def test_samples_and_blocks():
    (stage,) = ATS().stages(INFO)
    assert stage.layers == (6, 12, 17)
    assert stage.ragged
    assert ATS().stages(ModelInfo("x", 2, 2, False))[0].layers == (0, 1)
    (paper,) = ATS(samples=48, blocks=tuple(range(6, 23))).stages(INFO)
    left = paper.decide(encoder_tokens(6, 48)).mask.sum(1)
    assert (left < 49).all()
    with pytest.raises(ValueError, match="blocks must be a layer from 0 to 22 of this model, got 23"):
        ATS(blocks=(23,)).stages(INFO)
    with pytest.raises(ValueError, match="samples must be a whole number >= 1"):
        build_method("ats", {"samples": 0})


def test_fill_tops_up():
    tokens = encoder_tokens(17, 48)
    decide = ATS(keep=40, fill=True).stages(INFO)[0].decide
    assert decide(tokens).mask.sum(1).tolist() == [41, 41]
    assert (ATS(keep=40).stages(INFO)[0].decide(tokens).mask.sum(1) < 41).all()


def test_without_values():
    tokens = dataclasses.replace(encoder_tokens(17, 48), values=None)
    with pytest.raises(ValueError, match="needs the signal 'values', but got None"):
        ATS(keep=12).stages(INFO)[0].decide(tokens)
