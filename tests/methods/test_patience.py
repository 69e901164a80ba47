"""Patience: streaks of agreement and of low entropy, row by row, and the exit in a model."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO, visual_tokens
from vtprune.methods.patience import Patience, relative_entropy


def shown(layer, words, memory, sharpness=20.0):
    """Tokens of rows whose early predictions are these words of five."""
    tokens = visual_tokens(torch.rand(len(words), 4), [[4]] * len(words), layer, memory)
    return dataclasses.replace(tokens, prediction=sharpness * torch.nn.functional.one_hot(torch.tensor(words), 5))


def test_layers():
    (stage,) = Patience().stages(INFO)
    assert stage.layers == tuple(range(16, 32))
    (stage,) = Patience(first=3, last=20).stages(INFO)
    assert stage.layers == tuple(range(3, 21))
    (stage,) = Patience(last=9).stages(INFO)
    assert stage.layers == (9,)
    for wrong in ({"first": 0}, {"last": 32}, {"first": 9, "last": 8}):
        with pytest.raises(ValueError, match="must be a layer from 1 to"):
            Patience(**wrong).stages(INFO)
    with pytest.raises(ValueError, match="patience must be a whole number >= 1"):
        Patience(patience=0)


@pytest.mark.parametrize(("patience", "left"), [(1, [3, None, 2]), (2, [4, None, 3]), (3, [None, None, 4])])
def test_agreement_is_counted_per_row_and_starts_anew(patience, left):
    words = {1: [0, 0, 2], 2: [1, 3, 2], 3: [1, 0, 2], 4: [1, 3, 2]}
    method, memory, found = Patience(patience=patience), {}, [None] * 3
    for layer, predicted in words.items():
        mask = method.decide(shown(layer, predicted, memory)).mask
        for i in range(3):
            assert mask[i].all() or not mask[i].any()
            if found[i] is None and not mask[i].any():
                found[i] = layer
    assert found == left


def test_entropy():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -99.0, -99.0], [99.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(relative_entropy(logits), torch.tensor([1.0, math.log(2) / math.log(4), 0.0]))
    method, memory = Patience(rule="entropy", patience=2, entropy=0.5), {}
    sure = shown(1, [0, 1], memory)
    unsure = dataclasses.replace(sure, prediction=torch.stack((sure.prediction[0].float(), torch.zeros(5))))
    # Another word each time, but a certain one: that counts here.
    assert method.decide(sure).mask.all()
    assert method.decide(unsure).mask.tolist() == [[False] * 4, [True] * 4]
    assert method.decide(shown(3, [4, 4], memory)).mask.tolist() == [[False] * 4, [True] * 4]
    assert not method.decide(shown(4, [3, 2], memory)).mask.any()


def test_all_leave_at_the_last_layer_that_may_see_them():
    assert not Patience(last=4).decide(shown(4, [0, 1], {})).mask.any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "qwen3_vl"])
def test_exit_in_a_model(name):
    """Where the words that the model with fewer layers says agree for the first time, row by row of a batch."""
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 7, seed=n) for n in range(8)]
    model = family.model()
    language_model, said = model.model.language_model, []

    def look(module, args):
        said.append(model.lm_head(language_model.norm(args[0][:, -1])).argmax(-1))

    handles = [layer.register_forward_pre_hook(look) for layer in language_model.layers]
    model(**family.inputs(*rows))
    for handle in handles:
        handle.remove()
    # Behind layers 1 and 2, 2 and 3, and so on: what is known at the inputs of layers 2, 3, ...
    agree = torch.stack([a == b for a, b in itertools.pairwise(said[1:])])
    first = [2 + int(x.int().argmax()) if x.any() else None for x in agree.T]
    assert len(set(first)) > 1, "rows differ, or nothing is tested"
    with vtprune.applied(model, Patience(patience=1, first=1)):
        model(**family.inputs(*rows))
        report = vtprune.report(model)
    for place in report.places:
        staying = [p.tokens for p in report.pictures if first[p.row] is None or first[p.row] > place.layer]
        assert place.tokens_after == sum(staying)
