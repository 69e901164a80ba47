"""What is special about resize: the filter, the grid, and where it acts. Before the encoder: test_encoder_input.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import INFO, pictures
from vtprune.methods import Pixels, Place
from vtprune.methods.resize import Resizing, resample


def test_acts_before_an_encoder_that_takes_any_size_and_behind_others():
    (stage,) = Resizing().stages(INFO)
    assert (stage.place, stage.needs_grid, stage.positions) == (Place.ENCODER_OUTPUT, True, "auto")
    (stage,) = Resizing().stages(dataclasses.replace(INFO, any_size=True, position_axes=3))
    assert (stage.place, stage.positions) == (Place.ENCODER_INPUT, "compact")


@pytest.mark.parametrize("how", ["bicubic", "bilinear", "area"])
def test_resampling_keeps_flat_maps_and_the_mean_and_does_not_alias(how):
    flat = torch.full((1, 2, 12, 8), 0.3)
    torch.testing.assert_close(resample(flat, (5, 3), how), torch.full((1, 2, 5, 3), 0.3))
    stripes = (torch.arange(32) % 2).float().expand(1, 1, 32, 32)  # the finest there are
    assert (resample(stripes, (8, 8), how)[..., 1:-1] - 0.5).abs().max() < 0.02
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    assert resample(ramp, (4, 4), how)[0, 0, 0].mean() == pytest.approx(7.5, abs=1e-4)
    assert resample(ramp.bfloat16(), (4, 4), how).dtype == torch.bfloat16


def test_areas_are_means_of_blocks():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert resample(maps, (2, 2), "area").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_pixels_are_resized_to_the_nearest_grid():
    picture = Pixels((1, 8, 4), torch.randn(1, 6, 8 * 28, 4 * 28))
    assert Resizing(keep=0.25).shrink_pixels(picture).pixels.shape == (1, 6, 4 * 28, 2 * 28)
    assert Resizing(keep=8).shrink_pixels(picture).pixels.shape == (1, 6, 4 * 28, 2 * 28)
    assert Resizing(keep=1).shrink_pixels(picture).pixels.shape == (1, 6, 28, 28)
    assert Resizing(keep=1.0).shrink_pixels(picture) is None
    video = Pixels((3, 4, 4), torch.randn(3, 6, 4 * 28, 4 * 28))
    assert Resizing(keep=12).shrink_pixels(video).pixels.shape == (3, 6, 2 * 28, 2 * 28)


def test_features_of_every_frame_are_resampled_by_themselves():
    batch = pictures(2, (3, 4, 6))
    decision = Resizing().shrink_features(batch)
    one = dataclasses.replace(batch, grid=(1, 4, 6), encoded=batch.encoded[:1, 24:48])
    assert decision.features.shape == (2, 18, 12)
    torch.testing.assert_close(decision.features[:1, 6:12], Resizing().shrink_features(one).features)
    assert decision.owner[0, 24:30].tolist() == [6, 6, 7, 7, 8, 8]


def test_features_are_resampled_by_the_filter():
    batch = pictures(1, (1, 4, 6))
    by_areas = Resizing(filter="area").shrink_features(batch).features
    blocks = batch.encoded.view(1, 2, 2, 3, 2, 12).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(by_areas, blocks)
    assert not torch.allclose(Resizing().shrink_features(batch).features, blocks, atol=1e-3)


def test_refuses():
    with pytest.raises(ValueError, match="filter must be"):
        Resizing(filter="nearest")
    with pytest.raises(ValueError, match="whole grid"):
        Resizing().shrink_features(dataclasses.replace(pictures(), grid=None))
