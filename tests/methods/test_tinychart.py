from __future__ import annotations

import pytest

from tests.methods.inputs import INFO, encoder_tokens
from vtprune.methods import ModelInfo
from vtprune.methods.tinychart import TinyChart


@pytest.mark.parametrize(("patches", "r", "left"), [(2916, 84, 732), (1296, 20, 776)])
def test_numbers_of_the_paper(patches, r, left):
    there = patches
    for _ in range(26):
        there -= min(r, there // 2)
    assert there == left


def test_constant_and_cut_to_half():
    decide = TinyChart(r=20).stages(INFO)[0].decide
    assert decide(encoder_tokens(3, 48, protected=0)).groups == 28
    assert decide(encoder_tokens(3, 25, protected=0)).groups == 13
    assert decide(encoder_tokens(3, 1, protected=0)) is None


def test_presets_for_other_models():
    """729 patches of 26 blocks to 192: 21 merges in the first 17 blocks, 20 in the others."""
    (stage,) = TinyChart(keep=192).stages(ModelInfo("llava_onevision", 26, 28, False, 729))
    assert stage.proportional
    assert stage.decide(encoder_tokens(0, 729, protected=0, count=1)).groups == 708


def test_refuses():
    with pytest.raises(TypeError, match="r must be one whole number"):
        TinyChart(r=(1, 2))
    with pytest.raises(ValueError, match="keep must leave at least"):
        TinyChart(keep=1).stages(ModelInfo("x", 2, 2, False, 576))
