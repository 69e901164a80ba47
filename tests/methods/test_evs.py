"""EVS: one budget per video, the first frame whole, comparison with the frame before."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import FAMILIES, VIDEO
from tests.methods.inputs import pictures
from vtprune.methods.evs import EVS, FIRST_FRAME, dissimilarity


def kept(video, **parameters):
    mask = EVS(**parameters).decide(video).mask
    return mask.unflatten(1, (video.grid[0], -1)).sum(-1)


def test_worked_example():
    """Eight frames of 14 x 14, three quarters of them leave: the first frame, and 196 of the others together."""
    found = kept(pictures(2, (8, 14, 14)), q=0.75)
    assert found.sum(1).tolist() == [392, 392]
    assert found[:, 0].tolist() == [196, 196]


@pytest.mark.parametrize(("q", "count"), [(0.99, 20), (0.6, 40), (0.59, 41), (0.0, 100)])
def test_the_paper_rounds_down_to_a_frame_at_least(q, count):
    assert kept(pictures(1, (5, 4, 5)), q=q).sum() == count


def test_changes_take_the_budget_wherever_they_are():
    still = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(0)).repeat(1, 4, 1, 1)
    still[:, 2, 3:] *= -1  # moves in the third frame, and back in the fourth
    video = dataclasses.replace(pictures(1, (4, 2, 3)), projected=still.flatten(1, 2))
    assert kept(video, keep=12).tolist() == [[6, 0, 3, 3]]
    # What is left ties at no change: earlier tokens win.
    assert EVS(keep=14).decide(video).mask[0].nonzero().flatten().tolist() == [*range(8), 15, 16, 17, 21, 22, 23]


def test_slow_drift_is_never_seen():
    """Compared with the frame before, not with what was kept: small steps stay small however far they lead."""
    angle = torch.linspace(0, 3, 30)
    drift = torch.stack((angle.cos(), angle.sin()), 1)[None]
    assert (dissimilarity(drift, 30)[:, 1:] < 0.01).all()
    assert dissimilarity(drift, 30)[0, 0] == FIRST_FRAME


def test_what_was_removed_before_is_missed():
    video = dataclasses.replace(pictures(1, (4, 2, 3)), grid=None)
    with pytest.raises(ValueError, match="put 'evs' first"):
        EVS().decide(video)


@pytest.mark.parametrize("q", [1, -0.1, 1.5])
def test_refuses_bad_rates(q):
    with pytest.raises(ValueError, match="q must be a number in"):
        EVS(q=q)


def test_models_without_videos_refuse():
    with pytest.raises(ValueError, match=r"evs cannot work on .* it acts on videos"):
        vtprune.apply(FAMILIES["llava-clip"].model(), "evs")


@torch.no_grad()
def test_every_video_has_its_own_budget():
    family = FAMILIES["qwen2_5_vl"]
    with vtprune.applied(family.model(), "evs", keep=0.5) as model:
        model(**family.inputs(family.row(1, VIDEO, 2, VIDEO, 3)))
        sizes = [(p.tokens, len(p.kept)) for p in vtprune.report(model).pictures]
    assert sizes == [(60, 30), (18, 9)]
