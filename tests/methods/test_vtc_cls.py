"""VTC-CLS: which blocks vote, and how votes are counted."""

from __future__ import annotations

import pytest
import torch

from tests.methods.inputs import INFO
from vtprune.methods import ModelInfo, Pictures
from vtprune.methods.vtc_cls import VTCCLS, ensemble, summed

FULL = ModelInfo("qwen2_5_vl", 32, 36, False, attention_blocks=(7, 15, 23, 31), scored_block=31)


@pytest.mark.parametrize(
    ("model", "layer", "blocks"),
    [
        (INFO, None, (16, 17, 18, 19, 20, 21, 22)),  # CLIP-L: the last of 24 blocks never votes
        (INFO, 22, (22,)),
        (INFO, -4, (20, 21, 22)),
        (FULL, None, (23, 31)),  # only blocks with full attention
        (FULL, 8, (15, 23, 31)),
    ],
)
def test_blocks_of_the_ensemble(model, layer, blocks):
    assert ensemble(model, layer) == blocks
    (stage,) = VTCCLS(layer=layer).stages(model)
    assert {(s.name, s.block) for s in stage.signals} == {("attention", block) for block in blocks}


@pytest.mark.parametrize("layer", [23, -1, -25])
def test_an_empty_ensemble_is_refused(layer):
    with pytest.raises(ValueError, match="layer must leave at least one vision block"):
        VTCCLS(layer=layer).stages(INFO)


def test_a_plain_sum_decides():
    # Token 0 is first in one block, token 1 second in both: only the sum prefers token 1.
    rows = [torch.tensor([[0.5, 0.4, 0.1]]), torch.tensor([[0.0, 0.4, 0.6]])]
    assert summed(rows).argmax() == 1
    (stage,) = VTCCLS(keep=1, layer=21).stages(INFO)
    signals = dict(zip(sorted(stage.signals, key=lambda s: s.block), rows, strict=True))
    assert stage.decide(Pictures(None, torch.zeros(1, 3, 4), signals=signals)).mask.tolist() == [[False, True, False]]


def test_layer_of_another_type():
    with pytest.raises(TypeError, match="layer must be a whole number or None, got"):
        VTCCLS(layer=1.5)
