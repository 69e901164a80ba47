"""VisionZip: dominant tokens, evenly spread targets, and what is added to them."""

from __future__ import annotations

import pytest
import torch

from tests.methods.inputs import INFO, pictures
from vtprune.methods.visionzip import VisionZip, contextual_count, contextual_targets, fold


@pytest.mark.parametrize(("count", "contextual"), [(192, 30), (128, 20), (64, 10), (32, 5), (2, 1), (1, 0)])
def test_presets_split_the_budget(count, contextual):
    assert contextual_count(count, VisionZip.contextual) == contextual


def test_targets_are_spread_over_the_rest():
    dominant = torch.tensor([[True, False, False, False, False, True, False, False, False]])
    targets, owner = contextual_targets(torch.randn(1, 9, 4), dominant, 3)
    assert targets.tolist() == [[1, 3, 6]]  # every second of 1, 2, 3, 4, 6, 7, 8; the tail holds none
    assert owner[0, [0, 5]].tolist() == [0, 5]
    assert set(owner[0].tolist()) == {0, 1, 3, 5, 6}


def test_the_most_similar_target_owns():
    metric = torch.tensor([[[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [1.0, 5.0]]])
    targets, owner = contextual_targets(metric, torch.zeros(1, 4, dtype=torch.bool), 2)
    assert targets.tolist() == [[0, 2]]
    assert owner.tolist() == [[0, 0, 2, 2]]


def test_target_plus_mean_of_the_others():
    x = torch.tensor([[[1.0], [2.0], [4.0], [100.0]]])
    assert fold(x, torch.tensor([[0, 0, 0, 3]]))[0, [0, 3], 0].tolist() == [4.0, 100.0]


def test_no_contextual_tokens():
    (stage,) = VisionZip(keep=5, contextual=0).stages(INFO)
    batch = pictures(signals=stage.signals)
    decision = stage.decide(batch)
    assert decision.mask.sum(1).tolist() == [5, 5]
    torch.testing.assert_close(decision.mix(batch.encoded), batch.encoded)


def test_only_contextual_tokens():
    (stage,) = VisionZip(keep=5, contextual=1.0).stages(INFO)
    decision = stage.decide(pictures(signals=stage.signals))
    assert [row.nonzero()[:, 0].tolist() for row in decision.mask] == [[0, 9, 18, 27, 36]] * 2
