"""TidalDecode: two layers choose, others follow."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import INFO
from tests.methods.reading import HEADS, decoded, floats, layer_slots, read, split
from vtprune.methods import ModelInfo
from vtprune.methods.tidaldecode import TidalDecode, most_wanted

ROWS = [(3, 12, 4), (2, 5, 1, 8, 6), (9,)]
MODEL = ModelInfo("x", 4, 6, False)


def run(method, slots, layers=6):
    """The decisions of all layers for one decoded token, each with keys of its own; None before the first."""
    (stage,) = method.stages(dataclasses.replace(MODEL, decoder_layers=layers))
    memory, found = {}, []
    for layer in range(layers):
        keys = floats(*slots.keys.shape, seed=90 + layer)
        here = dataclasses.replace(slots, layer=layer, keys=keys, memory=memory, held={})
        found.append((here, stage.decide(here) if layer in stage.layers else None))
    return found


def wanted_by(slots, row, heads, count):
    visual = slots.visual_entries[row, 0].nonzero()[:, 0]
    logits = torch.stack([slots.keys[row, h // 2, visual] @ slots.queries[row, h, 0] * slots.scale for h in heads])
    scores = logits[0] if len(heads) == 1 else logits.softmax(1).sum(0)
    return set(visual[scores.argsort(descending=True, stable=True)[:count]].tolist())


@pytest.mark.parametrize("share", ["head", "group", "layer"])
def test_layers_read_what_the_latest_one_chose(share):
    lists = {"head": [[0], [1], [2], [3]], "group": [[0, 1], [2, 3]], "layer": [[0, 1, 2, 3]]}[share]
    found = run(TidalDecode(keep=4, first=1, second=3, share=share), decoded(layer_slots(ROWS)))
    assert [decision is None for _, decision in found] == [True, True, False, True, False, False]
    for layer, chosen_by in ((2, 1), (4, 3), (5, 3)):
        slots, decision = found[layer]
        for row in range(3):
            sets = read(slots, decision, row)
            assert len(sets) == len(lists)
            for entries, heads in zip(sets, lists, strict=True):
                visual, text = split(slots, entries, row)
                assert visual == wanted_by(found[chosen_by][0], row, heads, 4)
                assert len(text) == (8, 10, 10)[row]


def test_prompts_and_small_caches_read_everything():
    method = TidalDecode(keep=4, first=0)
    assert all(decision is None for _, decision in run(method, layer_slots(ROWS)))
    assert all(decision is None for _, decision in run(TidalDecode(keep=13, first=0), decoded(layer_slots(ROWS))))


def test_layers_that_choose():
    def layers(parameters, count=32):
        (stage,) = TidalDecode(**parameters).stages(dataclasses.replace(INFO, decoder_layers=count))
        found = run(TidalDecode(keep=4, **parameters), decoded(layer_slots(ROWS)), count)
        return stage.layers[0], [
            i for i, (_, decision) in enumerate(found) if decision is None and i >= stage.layers[0]
        ]

    assert layers({}) == (2, [2, 13])
    assert layers({"second": 2}) == (2, [2])
    assert layers({"first": 5}, 7) == (5, [5])
    assert layers({}, 2) == (1, [1])


def test_of_equal_entries_the_first_are_wanted():
    mask = most_wanted(
        floats(1, HEADS, 8), torch.ones(1, 2, 9, 8), 1.0, torch.ones(1, 9) > 0, torch.tensor([3]), "group"
    )
    assert mask[0].tolist() == [[True] * 3 + [False] * 6] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"first": 6}, "first must be a layer"), ({"first": 3, "second": 2}, "second must be"), ({"second": 6}, "second")],
)
def test_refuses_layers(wrong, message):
    with pytest.raises(ValueError, match=message):
        TidalDecode(**wrong).stages(MODEL)
    with pytest.raises(ValueError, match="share must be one of"):
        TidalDecode(share="row")
