from __future__ import annotations

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO, encoder_tokens
from vtprune.methods.dymu import (
    DyMU,
    calibrate,
    load_thresholds,
    merge_above,
    nearest_pairs,
    pooled_threshold,
    removals,
    save_thresholds,
)

EVERY = torch.ones(1, 6, dtype=torch.bool)


def test_merges_what_is_above_and_no_more():
    keys = torch.eye(6)[None].clone()
    keys[0, 2] = keys[0, 1]
    step = merge_above(keys, 0.5, EVERY)
    assert step.groups == 5
    assert step.owner[0, 1] == step.owner[0, 2]
    assert merge_above(keys, 1.0, EVERY) is None, "strictly above"


def test_at_most_half_merges_and_the_class_token_stays():
    tokens = encoder_tokens(0, 20, protected=1)
    step = merge_above(tokens.keys, -1.0, tokens.sizes > 0, 1)
    assert step.groups == 21 - 10
    assert (step.owner[:, 0] == 0).all()
    assert merge_above(torch.ones(1, 1, 3), -1.0, torch.ones(1, 1, dtype=torch.bool)) is None


def test_pictures_differ_and_padding_matches_nobody():
    keys = torch.stack((torch.ones(6, 6), torch.eye(6)))
    valid = torch.arange(6) < torch.tensor([[4], [6]])
    likeness, _ = nearest_pairs(keys, valid)
    assert likeness[0, 2] == -torch.inf
    step = merge_above(keys, 0.99, valid)
    assert step.ragged
    assert step.owner[1, :3].tolist() == [0, 1, 2], "nothing to merge: as it was"


def test_threshold_is_the_first_that_does_not_merge():
    likeness = torch.tensor([[0.9, 0.1, 0.8], [0.7, 0.95, -torch.inf]])
    threshold, merged = pooled_threshold(likeness, 1)
    assert threshold == pytest.approx(0.8)
    assert merged.tolist() == [[True, False, False], [False, True, False]]
    assert pooled_threshold(likeness, 50)[0] == 0


def test_schedules():
    assert removals(10, 4) == (3, 3, 2, 2)
    assert removals(20, 4, "linear") == (10, 7, 3, 0)
    assert removals(20, 4, "reverse") == (0, 3, 7, 10)


def test_calibration_meets_the_budget_on_its_own_pictures(tmp_path):
    family = FAMILIES["llava-clip"]
    model = family.model()
    batch = family.inputs(*(family.row(2, IMAGE, 3, seed=s) for s in range(8)))
    thresholds = calibrate(model, [batch, batch], keep=0.5)
    assert len(thresholds) == 3
    path = tmp_path / "thresholds.json"
    save_thresholds(path, thresholds)
    assert load_thresholds(path) == thresholds
    with vtprune.applied(model, "dymu", thresholds=str(path)), torch.no_grad():
        model(**batch)
        kept = [len(p.kept) for p in vtprune.report(model).pictures]
    assert abs(sum(kept) / 8 - 18) <= 1
    assert not vtprune.api._engines.get(model)


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match="thresholds must have one value for each of 23 encoder blocks, got 2"):
        DyMU(thresholds=(0.5, 0.5)).stages(INFO)
    with pytest.raises(ValueError, match="thresholds must be a file written by save_thresholds"):
        DyMU(thresholds=str(tmp_path / "none.json")).stages(INFO)
    with pytest.raises(ValueError, match="batches must hold pictures"):
        calibrate(FAMILIES["llava-clip"].model(), [])
