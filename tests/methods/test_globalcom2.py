"""GlobalCom2: the thumbnail sets ratios and guides the choice."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import INFO
from tests.methods.tiled import tiled
from vtprune.methods import ModelInfo
from vtprune.methods.globalcom2 import GlobalCom2, combined, crop_scales, guidance


def decide(pictures, logits, **parameters):
    (stage,) = GlobalCom2(**parameters).stages(INFO)
    return stage.decide(dataclasses.replace(pictures, signals=dict.fromkeys(stage.signals, logits))).mask


def test_asks_for_the_last_block_of_the_encoder():
    (stage,) = GlobalCom2().stages(INFO)
    ((name, block),) = [(s.name, s.block) for s in stage.signals]
    assert (name, block) == ("logits", 23)  # features come from block 22


def test_ratios_of_tiles():
    thumbnail = torch.zeros(1, 16)
    assert crop_scales(thumbnail, (4, 4), (2, 2), 0.25, 10).flatten().tolist() == pytest.approx([0.25] * 4)
    thumbnail[0, 0] = 1000  # the softmax saturates: r (2 - 1 / n) for one, r (1 - 1 / n) for the others
    scales = crop_scales(thumbnail, (4, 4), (2, 2), 0.25, 10).flatten().tolist()
    assert scales == pytest.approx([0.4375, 0.1875, 0.1875, 0.1875])
    assert crop_scales(thumbnail, (4, 4), (2, 2), 0.9, 10)[0, 0] == 1


def test_what_does_not_divide_joins_the_last_region():
    thumbnail = torch.zeros(1, 5)
    thumbnail[0, 4] = 50
    assert crop_scales(thumbnail, (1, 5), (1, 2), 0.2, 1.0).flatten().tolist() == pytest.approx([0.1, 0.3])


def test_guidance_is_where_tiles_show_the_same():
    assert guidance(torch.tensor([[0.0, 1.0]]), (1, 2), (1, 4)).tolist() == [[0.0, 0.25, 0.75, 1.0]]


def test_both_scores_count_alike():
    own, shown = torch.tensor([[30.0, 0.0, 40.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert combined(own, shown)[0].tolist() == pytest.approx([0.6, 1.0, 0.8])


def test_counts():
    batch = tiled(columns=(4, 2))
    logits = torch.randn(2, batch.tokens, generator=torch.Generator().manual_seed(1))
    mask = decide(batch, logits, keep=0.25)
    assert mask[:, :16].sum(1).tolist() == [4, 4]
    assert ((mask[:, 16:].sum(1) >= 8) & (mask[:, 16:].sum(1) <= 12)).all()
    assert decide(batch, logits, keep=1.0).all()


def test_refused_without_tiles_of_any_kind():
    with pytest.raises(ValueError, match=r"globalcom2 cannot work on qwen2_vl: .* use hiprune or visionzip"):
        GlobalCom2().stages(ModelInfo("qwen2_vl", 2, 2, False, attention_blocks=(0, 1), scored_block=1))
