"""QuoTA: shares of frames, their grids, resampling, and any function as the scorer."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.methods.inputs import pictures
from vtprune.methods.quota import QuoTA, fit, plan, shares, text_scores


def by(*scores):
    return lambda batch, frames: torch.tensor([scores[:frames]]).expand(len(batch.encoded), -1)


def test_shares_are_squared_scores():
    video = pictures(1, (3, 6, 6))
    mask = QuoTA(keep=50, scorer=by(0.4, 0.0, 0.3)).decide(video).mask.view(3, 36)
    assert mask.sum(1).tolist() == [30, 0, 16]  # 32 and 18 tokens: 6 x 5 and 4 x 4


def test_what_a_frame_cannot_hold_is_handed_on_or_lost():
    assert shares([4.0, 1.0], 0.5) == [0.5, pytest.approx(0.2 + 0.2 / 0.7 * 0.3)]
    assert shares([4.0, 1.0], math.inf) == [0.8, 0.2]
    video = pictures(1, (2, 6, 6))
    handed, lost = (QuoTA(keep=50, cap=cap, scorer=by(3.0, 1.0)).decide(video).mask.sum() for cap in (True, False))
    assert (handed, lost) == (36 + 6, 36 + 4)  # 6.1 and 5.0 tokens


def test_without_any_score_frames_are_equal():
    assert shares([0.0, 0.0], 1) == [0.5, 0.5]


def test_the_best_frame_keeps_a_token_at_least():
    mask = QuoTA(keep=1, scorer=by(1.0, 2.0, 1.0)).decide(pictures(1, (3, 6, 6))).mask.view(3, 36)
    assert mask.sum(1).tolist() == [0, 1, 0]


@pytest.mark.parametrize("scores", [(1e5, 1e-5, 0.0), (1e-20, 1e-30, 0.0), (math.inf, 1.0, math.nan)])
def test_any_scale_of_scores(scores):
    """A power of a large one does not overflow, nor is a small one rounded to nothing; NaN is no score."""
    mask = QuoTA(keep=30, exponent=100, scorer=by(*scores)).decide(pictures(1, (3, 6, 6))).mask.view(3, 36)
    assert mask.sum(1).tolist() == [30, 0, 0]


@pytest.mark.parametrize(
    ("scorer", "words"),
    [(by(1.0, -1.0, 1.0), "with negative ones"), (lambda batch, frames: torch.ones(frames), r"shape \(3,\)\.")],
)
def test_scorers_that_return_something_else_are_refused(scorer, words):
    with pytest.raises(ValueError, match=r"quota: scorer must return 1 x 3 \(videos x frames\) scores >= 0.*" + words):
        QuoTA(keep=30, scorer=scorer).decide(pictures(1, (3, 6, 6)))


@pytest.mark.parametrize(
    ("count", "grid", "size"),
    [(27, (9, 9), (5, 5)), (59, (9, 9), (8, 7)), (11, (9, 9), (3, 3)), (1, (9, 9), (1, 1)), (2, (2, 8), (1, 2))],
)
def test_grids(count, grid, size):
    assert fit(count, grid) == size


@pytest.mark.parametrize("resample", ["bilinear", "average", "pick", "merge", "merge_axes"])
@pytest.mark.parametrize("count", [1, 7, 20])
def test_new_tokens_are_made_of_old_ones(resample, count):
    """Of a constant frame they are that constant, and their slots are distinct, in the frame, their own owners."""
    frame = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    one = plan(frame, (4, 5), count, resample)
    new = one.make(torch.full((20, 3), 2.5))
    torch.testing.assert_close(new, torch.full_like(new, 2.5))
    assert len(new) == len(one.where) == len(set(one.where.tolist())) <= count
    assert one.owner[one.where].tolist() == one.where.tolist()
    if resample != "pick":
        assert set(one.owner.tolist()) == set(one.where.tolist())
    if count == 20:
        assert torch.equal(one.make(frame)[one.where.argsort()], frame)


def test_built_in_scores_know_padding_and_the_question():
    batch = pictures(2, (3, 2, 2))
    x = batch.projected.clone()
    x[0, 4] = 3 * batch.text[0, 4]
    batch = dataclasses.replace(batch, projected=x)
    scores = text_scores(batch, 3)
    changed = torch.where(batch.text_valid[..., None], batch.text, 100.0)
    assert torch.equal(text_scores(dataclasses.replace(batch, text=changed), 3), scores)
    only = torch.tensor([[False] * 4 + [True]] * 2)
    found = text_scores(dataclasses.replace(batch, text_valid=only), 3)[0]
    assert found.argmax() == 1
    torch.testing.assert_close(found[1], torch.tensor(1.0))


@pytest.mark.parametrize("resample", ["bilinear", "average", "merge", "merge_axes"])
def test_gradients_flow(resample):
    video = pictures(1, (2, 3, 4))
    decision = QuoTA(keep=8, resample=resample, scorer=by(1.0, 1.0)).decide(video)
    x = video.projected.clone().requires_grad_()
    decision.mix(x)[decision.mask].sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).any()
