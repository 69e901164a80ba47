"""SnapKV: window, smoothing, and where pictures end."""

from __future__ import annotations

import pytest
import torch

from tests.methods.inputs import INFO, cache_entries
from vtprune.methods._entries import age, counted, latest, received
from vtprune.methods.snapkv import SnapKV, observed, smoothed


def test_smoothing_is_a_mean_with_zeros_beyond_the_ends():
    scores = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])
    picture = torch.zeros(1, 4, dtype=torch.long)
    expected = torch.nn.functional.avg_pool1d(scores, 3, 1, 1)
    torch.testing.assert_close(smoothed(scores, picture, 3), expected)
    torch.testing.assert_close(smoothed(scores, picture, 3, "max"), torch.nn.functional.max_pool1d(scores, 3, 1, 1))
    assert torch.equal(smoothed(scores, picture, 1), scores)
    torch.testing.assert_close(smoothed(scores, picture, 11), torch.full_like(scores, 15 / 11))


def test_smoothing_stops_at_the_borders_of_a_picture():
    scores = torch.tensor([[[100.0, 1.0, 2.0, 100.0, 3.0]]])
    picture = torch.tensor([[-1, 0, 0, -1, 1]])
    assert (smoothed(scores, picture, 3) * 3).round().tolist() == [[[100, 3, 3, 100, 3]]]


def test_the_last_queries_that_count_decide():
    entries = cache_entries([(2, 12, 5), (9, 4, 3)])
    scores, window = observed(entries, 3)
    weights = (counted(entries) & (age(counted(entries)) < 3)).float()
    torch.testing.assert_close(scores, received(entries, weights) / (4 * 3), atol=1e-6, rtol=1e-5)
    assert window.sum(1).tolist() == [3, 3]
    assert latest(entries, 3).queries.shape[2] == 3
    assert latest(entries, 99) is entries


def test_neighbours_of_a_detail_stay():
    """One entry gets all attention: without smoothing the rest is a matter of chance, with it what stands around it."""
    entries = cache_entries([(3, 20, 1)])
    entries.keys.zero_()
    entries.keys[:, :, 13] = 40 * entries.queries.unflatten(1, (2, 4))[:, :, :, -1].mean(2)
    mask = SnapKV(keep=5, window=1).decide(entries).mask
    for head in range(2):
        assert mask[0, head].nonzero().flatten().tolist() == [11, 12, 13, 14, 15]


def test_where_text_may_leave_the_window_stays_and_counts():
    entries = cache_entries([(6, 12, 5)], text=True)
    mask = SnapKV(keep=8, window=4, text=True).decide(entries).mask
    assert mask.sum(2).tolist() == [[8, 8]]
    assert mask[:, :, -4:].all()
    assert SnapKV(keep=2, window=4, text=True).decide(entries).mask.sum(2).tolist() == [[4, 4]]


def test_acts_once_in_every_layer():
    (stage,) = SnapKV().stages(INFO)
    assert stage.layers == tuple(range(32))
    assert not stage.decodes


@pytest.mark.parametrize(
    ("wrong", "message"), [({"kernel": 4}, "odd number"), ({"window": 0}, ">= 1"), ({"pool": "sum"}, "must be one of")]
)
def test_refuses(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SnapKV(**wrong)
