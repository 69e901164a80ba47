"""CDPruner: relevance of tokens to the text, and the traps of the authors' code."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import pictures
from vtprune.methods.cdpruner import CDPruner, relevance

X = torch.tensor([[[2.0, 0], [0, 3], [1, 1], [-1, 0]]])


def test_relevance_is_scaled_between_the_least_and_the_most_similar():
    found = relevance(X, torch.tensor([[[5.0, 0]]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.5, (1 + 0.5**0.5) / 2, 0.0]]), atol=1e-5, rtol=0)
    assert (found > 0).all()
    negative = relevance(X, torch.tensor([[[5.0, 0]]]), negative=True)
    torch.testing.assert_close(negative, 1 - found, atol=1e-5, rtol=0)


def test_mean_over_text_tokens_without_padding():
    text = torch.tensor([[[9.0, 9], [5, 0], [0, 1]]])
    valid = torch.tensor([[False, True, True]])
    assert torch.equal(relevance(X, text, valid), relevance(X, text[:, 1:]))
    assert relevance(X, text[:, 1:])[0].argmax() == 2


def test_alike_tokens_and_missing_text_leave_diversity_alone():
    """There: division by zero, and fewer tokens than asked for."""
    assert relevance(torch.ones(1, 5, 3), torch.rand(1, 2, 3)).tolist() == [[1.0] * 5]
    assert relevance(X, torch.rand(1, 2, 2), torch.zeros(1, 2, dtype=torch.bool)).tolist() == [[1.0] * 4]
    blank = dataclasses.replace(pictures(1), projected=torch.ones(1, 48, 16))
    assert CDPruner(keep=10).decide(blank).mask.sum() == 10


def test_more_tokens_than_directions():
    """There, features of 4 channels keep 4 tokens at most."""
    flat = dataclasses.replace(pictures(2), projected=pictures(2).projected[..., :4], text=pictures(2).text[..., :4])
    assert CDPruner(keep=20).decide(flat).mask.sum(1).tolist() == [20, 20]


def test_pictures_do_not_influence_each_other():
    """There, a batch shares the range of relevance."""
    g = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 30, 8, generator=g), torch.randn(2, 3, 8, generator=g)
    x[1] *= torch.linspace(0.1, 5, 8)
    torch.testing.assert_close(relevance(x, text)[:1], relevance(x[:1], text[:1]))
    assert relevance(x, text).amax(1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_theta_is_the_strength_of_relevance():
    batch = pictures(1)
    weak, strong = (CDPruner(keep=12, theta=theta).decide(batch).mask for theta in (0.0, 0.98))
    scores = relevance(batch.projected, batch.text, batch.text_valid)
    assert scores[strong].mean() > scores[weak].mean()
    assert strong[0, scores[0].topk(12).indices].sum() >= 10, "at large theta the most relevant stay"


@pytest.mark.parametrize("theta", [-0.1, 1.0])
def test_refuses_bad_strengths(theta):
    with pytest.raises(ValueError, match="theta must be a number in"):
        CDPruner(theta=theta)
