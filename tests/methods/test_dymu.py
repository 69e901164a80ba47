from __future__ import annotations

import json

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO, encoder_tokens
from vtprune.calibration import DyMUCalibration, dymu_thresholds
from vtprune.methods import build_method
from vtprune.methods.dymu import (
    DyMU,
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


def test_no_more_pairs_than_asked_for():
    tokens = encoder_tokens(0, 20, protected=1)
    step = DyMU(thresholds=-1.0, max_merges=3).stages(INFO)[0].decide(tokens)
    assert step.groups == 21 - 3
    likeness, _ = nearest_pairs(tokens.keys, tokens.sizes > 0, 1)
    best = 2 * likeness.argsort(dim=1, descending=True)[:, :3]
    assert (step.owner.gather(1, best) >= 21 // 2 + 1 - 3).all(), "the three most similar ones join another token"


def test_a_block_without_a_threshold_merges_nothing():
    (stage,) = DyMU(thresholds=(None, *[-1.0] * 22)).stages(INFO)
    tokens = encoder_tokens(0, 20)
    assert stage.decide(tokens) is None
    assert stage.decide(encoder_tokens(1, 20)) is not None


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
    assert removals(504, 24) == (21,) * 24
    assert sum(removals(504, 12, "linear")) == 504


def test_thresholds_are_means_over_batches():
    calibration = DyMUCalibration(keep=15)
    calibration.stages(INFO)
    taken = []
    for seed in range(3):
        calibration.decide(encoder_tokens(0, 20, seed=seed))
        taken.append(calibration.latest[0])
    assert len(set(taken)) == 3
    assert calibration.means[0] == pytest.approx(sum(taken) / 3)
    assert calibration.thresholds[5] is None, "5 merges in 23 blocks: the late ones have none"


def test_calibration_meets_the_budget_on_its_own_pictures(tmp_path):
    family = FAMILIES["llava-clip"]
    model = family.model()
    batch = family.inputs(*(family.row(2, IMAGE, 3, seed=s) for s in range(8)))
    with torch.no_grad():
        expected = model(**batch).logits
    thresholds = dymu_thresholds(model, [batch, batch], keep=0.5)
    assert len(thresholds) == 3
    path = tmp_path / "thresholds.json"
    save_thresholds(path, thresholds)
    assert load_thresholds(path) == thresholds
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected), "the model is as it was"
        with vtprune.applied(model, "dymu", thresholds=str(path), unmerge=False):
            model(**batch)
            kept = [len(p.kept) for p in vtprune.report(model).pictures]
    assert abs(sum(kept) / 8 - 18) <= 1


def test_unmerging_computes_less_and_attends_to_everything():
    family = FAMILIES["llava-clip"]
    model = family.model()
    x = family.inputs(family.row(5, IMAGE, 7))
    reports = {}
    for unmerge in (True, False):
        with vtprune.applied(model, "dymu", thresholds=0.3, unmerge=unmerge), torch.no_grad():
            logits = model(**x).logits
            reports[unmerge] = vtprune.report(model)
        assert (logits.shape[1] == x["input_ids"].shape[1]) == unmerge
    shared, left = reports[True], reports[False]
    assert shared.visual_tokens_after == shared.visual_tokens_before == 36 > left.visual_tokens_after
    groups = len(set(shared.pictures[0].owner))
    assert groups == left.visual_tokens_after
    assert f"the 36 visual tokens share {groups} hidden states" in shared.notes[0]
    assert shared.kv_bytes_after == shared.kv_bytes_before > left.kv_bytes_after
    assert shared.prefill_flops_before > shared.prefill_flops_after > left.prefill_flops_after


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match="thresholds must have one value for each of 23 encoder blocks, got 2"):
        DyMU(thresholds=(0.5, 0.5)).stages(INFO)
    with pytest.raises(ValueError, match="thresholds must be a file written by save_thresholds"):
        DyMU(thresholds=str(tmp_path / "none.json")).stages(INFO)
    (tmp_path / "high.json").write_text(json.dumps({"thresholds": [2.0] * 23}))
    with pytest.raises(ValueError, match=r"thresholds must be a file .*must be a number in \[-1, 1\], got 2.0"):
        DyMU(thresholds=str(tmp_path / "high.json")).stages(INFO)
    with pytest.raises(ValueError, match="batches must hold pictures"):
        dymu_thresholds(FAMILIES["llava-clip"].model(), [])
    family = FAMILIES["llava-clip"]
    batch = family.inputs(family.row(2, IMAGE, 3))
    with pytest.raises(ValueError, match="leaves 2 of 36 patches, for which block 2 would have to merge 11 of 13"):
        dymu_thresholds(family.model(), [batch], keep=2)
    with pytest.raises(ValueError, match="schedule must be one of"):
        dymu_thresholds(family.model(), [batch], schedule="even")
    with pytest.raises(ValueError, match="dymu cannot work on"):
        dymu_thresholds(FAMILIES["qwen2_vl"].model(), [])
    with pytest.raises(TypeError, match="unmerge must be True or False, got 'no'"):
        build_method("dymu", {"unmerge": "no"})
    with pytest.raises(ValueError, match="max_merges must be a whole number >= 0"):
        DyMU(max_merges=-1)
    model = FAMILIES["llava-clip"].model()
    with pytest.raises(ValueError, match="no other method can act beside it, got dymu \\+ fastv"):
        vtprune.apply(model, ["dymu", "fastv:layer=2"])
    vtprune.apply(model, ["dymu:unmerge=false", "fastv:layer=2"])
