"""ee_mllm on lists of slots."""

from __future__ import annotations

import pytest
import torch

from tests.methods.inputs import INFO, layer_slots
from vtprune.methods import Place, build_method
from vtprune.methods.ee_mllm import EEMLLM


def test_only_text_asks():
    slots = layer_slots(text=5, rows=2, columns=3, behind=4)
    (text,) = EEMLLM().attend(slots).parts
    assert torch.equal(text.slots[:, 0], slots.text)
    assert text.entries is None


def test_a_visual_token_sees_its_own_value_only():
    _, visual = EEMLLM(update="vo").attend(layer_slots(text=0, rows=1, columns=1, behind=2)).parts
    assert visual.itself
    assert visual.slots.tolist() == [[[0]]]


def test_the_prefix_is_the_text_before():
    slots = layer_slots(text=2, rows=1, columns=3, behind=4)
    _, visual = EEMLLM(prefix=True).attend(slots).parts
    assert visual.entries.tolist() == [[[0, 1]]]
    assert visual.sees.all()


def test_decoding_is_left_alone():
    assert EEMLLM().attend(layer_slots(text=0, rows=0, columns=0, behind=1, past=9)) is None


@pytest.mark.parametrize(("layer", "first"), [(None, 16), (0, 0), (31, 31)])
def test_layers(layer, first):
    (attention,) = build_method("ee_mllm", {"layer": layer}).stages(INFO)
    assert attention.layers == tuple(range(first, 32))
    assert not attention.signals
    places = [s.place for s in build_method("ee_mllm", {"layer": layer, "update": "frozen"}).stages(INFO)]
    assert places == [Place.ATTENTION, Place.MLP]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layer": 32}, "layer must be a layer from 0 to 31 of this model, got 32"),
        ({"update": "all"}, "update must be one of 'ffn', 'vo', 'frozen', got 'all'"),
        ({"update": "vo", "prefix": True}, "prefix=True needs update='ffn'"),
    ],
)
def test_refuses(parameters, message):
    with pytest.raises(ValueError, match=message):
        build_method("ee_mllm", parameters).stages(INFO)
