"""CoreMatching: shared neurons, the elbow and its traps, core neurons by hand, and the cut in a model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO
from tests.tiny import batch, picture, prompt, tiny_llava
from vtprune.methods.corematching import (
    CoreMatching,
    above_elbow,
    core_neurons,
    elbow,
    reference_rows,
    shared_neurons,
)


def test_layers():
    (stage,) = CoreMatching().stages(INFO)
    assert stage.layers == (10,)
    assert stage.observations[0].layers == (9,)
    (stage,) = CoreMatching().stages(dataclasses.replace(INFO, decoder_layers=28))
    assert stage.layers == (9,)
    with pytest.raises(ValueError, match="layer must be a layer from 1 to 31"):
        CoreMatching(layer=0).stages(INFO)


def test_the_reference_is_counted_from_the_end_of_a_row():
    valid = torch.tensor([[False, True, True, True, True], [True, True, True, False, False]])
    assert reference_rows((2, 5), valid, 2).tolist() == [3, 1]
    assert reference_rows((2, 5), valid, 9).tolist() == [1, 0]
    assert reference_rows((2, 5), None, 2).tolist() == [3, 3]
    active = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 3.0, 1.0], [1.0, -1.0, 1.0]]])
    assert shared_neurons(active, torch.tensor([1])).tolist() == [[1, 2, 1]]


def test_elbow():
    """Axes are not normalised; padding has no say; equal counts, or a single token, all stay."""
    counts = torch.tensor([[9, 2, 8, 1, 0, 1, 50], [4, 4, 4, 50, 50, 50, 50], [7, 0, 0, 0, 0, 0, 0]])
    valid = torch.tensor([[True] * 6 + [False], [True] * 3 + [False] * 4, [True] + [False] * 6])
    index, value = elbow(counts, valid)
    assert (index.tolist(), value.tolist()) == ([2, 0, 0], [2.0, 4.0, 7.0])
    assert above_elbow(counts, valid, "strict").nonzero().tolist() == [[0, 0], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0]]
    assert above_elbow(counts, valid, "inclusive")[0].nonzero()[:, 0].tolist() == [0, 1, 2]


def test_core_neurons_by_hand():
    g = torch.Generator().manual_seed(0)
    active = torch.randn(2, 7, 12, generator=g)
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, :3] = False
    found = core_neurons(active, valid, 0.5, 0.34)
    for row in range(2):
        tokens = active[row, valid[row]]
        many = int(0.5 * int((tokens > 0).sum()) / len(tokens))
        often = [sum(n in t.argsort(descending=True)[:many].tolist() for t in tokens) for n in range(12)]
        expected = sorted(range(12), key=lambda n: (-often[n], n))[:4]
        assert found[row].nonzero()[:, 0].tolist() == sorted(expected)


@torch.no_grad()
@pytest.mark.parametrize("parameters", [{}, {"reference": "core"}, {"elbow": "strict"}], ids=["text", "core", "elbow"])
@pytest.mark.parametrize("name", ["llava-clip", "qwen2_5_vl"])
def test_batch_equals_its_rows_alone(name, parameters):
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(1, IMAGE, 2, IMAGE, 4, seed=4)]
    with vtprune.applied(family.model(), "corematching", layer=2, **parameters) as model:
        together = model(**family.inputs(*rows)).logits[:, -1]
        for i, row in enumerate(rows):
            alone = model(**family.inputs(row)).logits[0, -1]
            torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_counts_are_those_of_the_model():
    """Of what enters the last projection of the MLP before the cut."""
    model, seen = tiny_llava(), []
    part = model.model.language_model.layers[1].mlp.down_proj
    part.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    row = prompt(5, 0, 7)
    vtprune.apply(model, CoreMatching(layer=2, keep=9))
    model(**batch(row), pixel_values=picture())
    on = seen[0][0] > 0
    counts = (on & on[-5]).sum(-1)[row == 1]
    expected = sorted(range(36), key=lambda n: (-int(counts[n]), n))[:9]
    assert list(vtprune.report(model).pictures[0].kept) == sorted(expected)
