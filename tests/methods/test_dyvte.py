"""DyVTE: features, the strict decision, the guards, routers from files, and the exit in a model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO, REQUIRED, router_file
from tests.tiny import batch, picture, prompt, tiny_llava
from vtprune.exit_labels import answer_losses, exit_labels
from vtprune.methods._exits import mean_and_last
from vtprune.methods.dyvte import DyVTE, exits, route


def test_features_are_the_mean_of_all_but_the_last_and_the_last():
    states = torch.arange(24.0).view(2, 4, 3)
    valid = torch.tensor([[True] * 4, [False, False, True, True]])
    features, known = mean_and_last(states, valid)
    assert features[0].tolist() == [3, 4, 5, 9, 10, 11]
    assert features[1].tolist() == [18, 19, 20, 21, 22, 23]
    assert known.tolist() == [True, True]
    few = torch.tensor([[False] * 3 + [True], [False] * 4])
    features, known = mean_and_last(states, few)
    assert known.tolist() == [False, False], "a mean over nothing decides nothing"
    assert not features.isnan().any()
    assert mean_and_last(states[:, :0], few[:, :0])[0].shape == (2, 6)


def test_a_router_by_hand():
    features, w1 = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    gelu = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in (-1.0, 2.0)]
    w2 = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    torch.testing.assert_close(route(features, w1, w2), torch.tensor([[gelu[0], 3 * gelu[1]]]))
    assert exits(torch.tensor([[1.0, 1.0], [1.0, 1.5], [2.0, 1.5]])).tolist() == [False, True, False]
    assert exits(torch.tensor([[1.0, 1.0], [2.0, 1.5]]), 0.5).tolist() == [True, False]


def test_files():
    (stage,) = DyVTE(**REQUIRED["dyvte"]).stages(INFO)
    assert stage.layers == tuple(range(1, 32))
    for wrong in ("", "/nowhere/routers.safetensors"):
        with pytest.raises(ValueError, match="dyvte needs trained routers: give a file of theirs"):
            DyVTE(routers=wrong).stages(INFO)
    with pytest.raises(ValueError, match="routers must be those of a model of 32 decoder layers, got w1"):
        DyVTE(routers=router_file(5, 48)).stages(INFO)
    with pytest.raises(TypeError, match="routers must be the path of a file, got 3"):
        DyVTE(routers=3)


def test_files_that_do_not_fit(tmp_path):
    save_file({"w1": torch.zeros(32, 4, 8)}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="routers must hold w1"):
        DyVTE(routers=str(tmp_path / "half.safetensors")).stages(INFO)
    model = tiny_llava()
    vtprune.apply(model, DyVTE(routers=router_file(5, 16)))
    with pytest.raises(ValueError, match="routers must be for the model's width 48, got 16"):
        model(**batch(prompt(5, 0, 7)), pixel_values=picture())


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "llava_next", "qwen3_vl"])
def test_exits_in_a_model(name):
    """Row by row, from the outputs of the bare model's layers."""
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 3 + n, seed=n) for n in range(6)]
    rows += [family.row(4, IMAGE, 2, IMAGE, 5, seed=7), family.row(6, IMAGE, 1, seed=8), family.row(5, IMAGE, seed=9)]
    path = router_file(5, 48)
    weights, model = load_file(path), family.model()
    leaning = []  # per row and layer, how much the second logit is above the first
    for row in rows:
        outputs, handles = [], []
        for layer in model.model.language_model.layers[1:]:
            handles.append(layer.register_forward_pre_hook(lambda module, args, to=outputs: to.append(args[0][0])))
        model(**family.inputs(row))
        for handle in handles:
            handle.remove()
        behind, differences = int(row.visual.nonzero()[-1]) + 1, []
        for i, states in enumerate(outputs if len(row.ids) - behind > 1 else []):
            features = torch.cat((states[behind:-1].mean(0), states[-1]))
            stay, leave = weights["w2"][i] @ torch.nn.functional.gelu(weights["w1"][i] @ features)
            differences.append(float(leave - stay))
        leaning.append(differences)
    every = sorted(x for row in leaning for x in row)
    for low, high in itertools.pairwise(every):  # random routers lean to one side
        offset = -(low + high) / 2
        first = [next((i + 1 for i, x in enumerate(row) if x + offset > 0), None) for row in leaning]
        if high - low > 1e-3 and len(set(first)) > 2:
            break
    assert len(set(first)) > 2, "rows differ, or nothing is tested"
    with vtprune.applied(model, DyVTE(routers=path, offset=offset)):
        model(**family.inputs(*rows))
        report = vtprune.report(model)
    for place in report.places:
        staying = [p.tokens for p in report.pictures if first[p.row] is None or first[p.row] > place.layer]
        assert place.tokens_after == sum(staying)


def test_labels():
    """Full agreement is needed, and a loss that is not much higher; answers without an answer are left out."""
    answers = torch.tensor([[-100, -100, 2, 1], [-100, 1, 1, 2], [-100, -100, 2, 1]])
    full = 5.0 * torch.nn.functional.one_hot(answers.clamp_min(0).roll(-1, 1), 4).float()
    blind = full.clone()
    blind[1, 0] = torch.tensor([0.0, 0.0, 9.0, 0.0])  # another first word
    blind[2, 1] *= 0.5  # the same word, but less certain
    assert exit_labels(full, blind, answers).tolist() == [1, 0, 0]
    assert exit_labels(full, blind, answers, tolerance=100.0).tolist() == [1, 0, 1]
    one = -math.log(math.exp(5) / (math.exp(5) + 3))
    torch.testing.assert_close(answer_losses(full, answers), torch.tensor([one] * 3))
