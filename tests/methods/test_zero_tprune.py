"""The worked example of the specification: votes, heads, look-alikes."""

from __future__ import annotations

import pytest
import torch

from tests.methods.inputs import INFO, encoder_tokens
from vtprune.methods import ModelInfo, build_method
from vtprune.methods.zero_tprune import ZeroTPrune, join_heads, look_alikes, page_rank

# Two heads of an attention; logits are their logarithms.
ATTENTION = torch.tensor(
    [
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1], [0.2, 0.5, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]],
        [[0.25, 0.25, 0.25, 0.25], [0.1, 0.1, 0.7, 0.1], [0.1, 0.2, 0.6, 0.1], [0.2, 0.2, 0.4, 0.2]],
    ]
)
QUERIES, KEYS = ATTENTION.log()[None], torch.eye(4).expand(1, 2, 4, 4)


def ranked(iterations, cls=False):
    return page_rank(QUERIES, KEYS, iterations, scale=1.0, cls=cls) / 4


@pytest.mark.parametrize(
    ("iterations", "votes", "joined"),
    [
        (
            1,
            [[0.2375, 0.4125, 0.2125, 0.1375], [0.1625, 0.1875, 0.4875, 0.1625]],
            [0.203485, 0.3204, 0.37604, 0.15052],
        ),
        (
            5,
            [[0.197987, 0.47847, 0.205886, 0.117657], [0.133447, 0.187895, 0.545211, 0.133447]],
            [0.16883, 0.363482, 0.412095, 0.1258],
        ),
    ],
)
def test_worked_example(iterations, votes, joined):
    found = ranked(iterations)
    torch.testing.assert_close(found[0], torch.tensor(votes), atol=1e-5, rtol=0)
    torch.testing.assert_close(join_heads(found, 0, 1)[0], torch.tensor(joined), atol=1e-5, rtol=0)


def test_variances_are_of_votes_with_mean_one():
    variance = (4 * ranked(5)).var(2, unbiased=False)
    torch.testing.assert_close(variance[0], torch.tensor([0.29746, 0.4727]), atol=1e-4, rtol=0)


def test_the_class_token_starts_with_more():
    expected = torch.tensor([[0.27, 0.39, 0.21, 0.13], [0.18, 0.2, 0.44, 0.18]])
    torch.testing.assert_close(ranked(1, cls=True)[0], expected, atol=1e-5, rtol=0)


def test_heads_out_of_range_do_not_count_unless_most_are():
    votes = torch.tensor([[[1.0, 1.0, 1.0], [0.5, 1.0, 1.5]]])
    torch.testing.assert_close(join_heads(votes), votes[:, 1])
    torch.testing.assert_close(join_heads(votes, 5, 6), (votes**2).mean(1).sqrt())
    # One of three is no majority to go by; another picture of the batch decides for itself.
    more = torch.tensor([[[1.0, 1.0, 1.0], [0.5, 1.0, 1.5], [1.0, 1.0, 1.0]], [[0.5, 1.0, 1.5]] * 2 + [[1.0] * 3]])
    expected = torch.stack(((more[0] ** 2).mean(0).sqrt(), more[1, 0]))
    torch.testing.assert_close(join_heads(more), expected)


def test_look_alikes_leave_the_less_important_half_only():
    features = torch.eye(5)[None].clone()
    features[0, 1] = features[0, 0]  # 0 is important, 1 is not
    features[0, 4] = features[0, 3]  # both are unimportant
    importance = torch.tensor([[5.0, 2.0, 4.0, 3.0, 1.0]])
    assert look_alikes(importance, features, 1).tolist() == [[False, True, False, False, False]]
    # An odd one is of the better half: 3 stays though 4 equals it.
    assert look_alikes(importance, features, 2).tolist() == [[False, True, False, False, True]]


def test_blocks():
    (stage,) = ZeroTPrune().stages(INFO)
    assert stage.layers == (4, 8, 12, 15, 19)
    assert stage.after_block
    assert ZeroTPrune().stages(ModelInfo("x", 2, 2, False))[0].layers == (0, 1)
    assert ZeroTPrune(blocks=(3,), iterations=(7,)).stages(INFO)[0].layers == (3,)
    with pytest.raises(ValueError, match="blocks must be a layer from 0 to 22"):
        ZeroTPrune(blocks=(23,)).stages(INFO)
    with pytest.raises(ValueError, match="needs as many blocks"):
        build_method("zero_tprune", {"blocks": [1, 2], "iterations": [3]})
    with pytest.raises(ValueError, match="blocks must be in order"):
        build_method("zero_tprune", {"blocks": [2, 1]})


def test_every_stage_leaves_its_number():
    decide = ZeroTPrune(keep=12, similar=0.1).stages(INFO)[0].decide
    mask = decide(encoder_tokens(4, 48)).mask
    assert mask.sum(1).tolist() == [1 + round(48 * (12 / 48) ** 0.2)] * 2
