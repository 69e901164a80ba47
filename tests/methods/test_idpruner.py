"""IDPruner: the first pick by importance alone, then importance against similarity, one or several picks per step."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import INFO, pictures
from vtprune.methods.idpruner import IDPruner, marginal_relevance

# Three directions; tokens 0 and 1 are twins.
X = torch.tensor([[[1.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1]]])
SCORES = torch.tensor([[1.0, 0.9, 0.2, 0.0]])


@pytest.mark.parametrize(
    ("trade_off", "order"),
    [(0.5, [0, 2, 3, 1]), (0.9, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3]), (0.0, [0, 2, 3, 1])],
)
def test_importance_against_similarity(trade_off, order):
    assert marginal_relevance(X, SCORES, 4, trade_off).tolist() == [order]


def test_picks_of_one_step_ignore_each_other():
    assert marginal_relevance(X, SCORES, 2, parallel=2).tolist() == [[0, 1]]
    assert marginal_relevance(X, SCORES, 3, parallel=2).tolist() == [[0, 1, 2]]


def test_steps_of_one_equal_the_operator():
    g = torch.Generator().manual_seed(0)
    x, scores = torch.randn(3, 40, 8, generator=g), torch.rand(3, 40, generator=g)
    alone = marginal_relevance(x, scores, 17, 0.7)
    assert torch.equal(marginal_relevance(x, scores, 1, 0.7, parallel=2), alone[:, :1])
    wide = marginal_relevance(x, scores, 17, 0.7, parallel=17)
    assert torch.equal(wide, scores.argsort(dim=1, descending=True)[:, :17]), "one step goes by importance alone"


@pytest.mark.parametrize("parallel", [1, 3])
def test_scale_of_importance_is_nothing_and_ties_go_to_the_first(parallel):
    g = torch.Generator().manual_seed(0)
    x, scores = torch.randn(2, 30, 8, generator=g), torch.rand(2, 30, generator=g)
    picks = marginal_relevance(x, scores, 9, parallel=parallel)
    assert torch.equal(marginal_relevance(x, 50 * scores - 7, 9, parallel=parallel), picks)
    same = marginal_relevance(torch.ones(1, 6, 4), torch.ones(1, 6), 4, parallel=parallel)
    assert same.tolist() == [[0, 1, 2, 3]]


def test_what_is_important():
    batch = dataclasses.replace(pictures(1), attention=torch.arange(48.0)[None])
    assert IDPruner(keep=1).decide(batch).mask[0].nonzero().tolist() == [[47]]
    longest = batch.projected.norm(dim=-1).argmax(1).tolist()
    assert IDPruner(keep=1, importance="norm").decide(batch).mask[0].nonzero().flatten().tolist() == longest
    assert IDPruner(importance="norm").stages(INFO)[0].signals == {"projected"}


@pytest.mark.parametrize("parameters", [{"importance": "scorer"}, {"trade_off": 1.1}, {"parallel": 0}])
def test_refuses_bad_parameters(parameters):
    with pytest.raises(ValueError, match="must be"):
        IDPruner(**parameters)
