"""VidCom2: unusual frames get more, every frame keeps its most unusual tokens, counts are the paper's."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import pictures
from vtprune.methods._frames import frame_top_k_mask
from vtprune.methods.vidcom2 import VidCom2, frame_counts, frame_scales, newlines_last, quiet_channels


def test_one_unusual_frame_takes_nearly_all_of_the_extra_budget():
    """R (2 - 1/T) for the frame with the cut, R (1 - 1/T) for all others."""
    number = torch.arange(4).repeat_interleave(100)[None]
    of_video = torch.where(number == 2, 1.0, 4.0)
    scales = frame_scales(of_video, number, 4, 0.4)
    torch.testing.assert_close(scales, torch.tensor([[0.3, 0.3, 0.7, 0.3]]))
    assert frame_counts(scales, number).tolist() == [[30, 30, 70, 30]]


def test_scales_stop_at_one_and_counts_at_one_token():
    number = torch.arange(2).repeat_interleave(10)[None]
    scales = frame_scales(torch.where(number == 0, 0.0, 5.0), number, 2, 0.9)
    torch.testing.assert_close(scales, torch.tensor([[1.0, 0.45]]))
    assert frame_counts(scales, number).tolist() == [[10, 4]]  # 4.5 is rounded to even
    assert frame_counts(torch.tensor([[0.01, 0.01]]), number).tolist() == [[1, 1]]


def test_a_single_frame_keeps_the_base_share():
    number = torch.zeros(1, 40, dtype=torch.int64)
    torch.testing.assert_close(frame_scales(torch.rand(1, 40), number, 1, 0.25), torch.tensor([[0.25]]))


def test_channels_with_the_lowest_variance():
    features = torch.randn(2, 50, 5, generator=torch.Generator().manual_seed(0))
    features = features * torch.tensor([[1.0, 5, 3, 4, 2], [5.0, 1, 2, 3, 4]])[:, None]
    assert quiet_channels(features).sort().values.tolist() == [[0, 4], [1, 2]]


def test_frames_of_different_sizes():
    """After another method, or with unpadded tiles; a frame without tokens keeps none and counts for nothing."""
    number = torch.tensor([[0, 0, 0, 0, 2, 2]])
    scales = frame_scales(torch.ones(1, 6), number, 3, 0.5)
    torch.testing.assert_close(scales, torch.tensor([[0.5, 0.25, 0.5]]))
    assert frame_counts(scales, number).tolist() == [[2, 0, 1]]
    mask = frame_top_k_mask(torch.tensor([[1.0, 3, 3, 3, 1, 2]]), number, torch.tensor([[2, 0, 1]]))
    assert mask.tolist() == [[False, True, True, False, False, True]]


def test_the_odd_token_of_every_frame_stays():
    x = torch.ones(1, 12, 8) + 0.01 * torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0))
    x[0, [2, 7, 8], 4:] *= -1
    video = dataclasses.replace(pictures(1, (3, 2, 2)), projected=x)
    mask = VidCom2(keep=0.25, channels=1).decide(video).mask[0]
    assert mask.nonzero().flatten().tolist() == [2, 7, 8]


def test_newlines_follow_all_tokens_of_their_frame():
    mask = torch.tensor([[True, False, False, True], [False, False, True, False]])
    assert newlines_last(mask, 2).tolist() == [0, 4, 2, 5, 9, 8, 11]


@pytest.mark.parametrize("parameters", [{"channels": 0}, {"channels": 1.5}, {"temperature": 0}])
def test_refuses_bad_parameters(parameters):
    with pytest.raises(ValueError, match="must be a number in"):
        VidCom2(**parameters)
