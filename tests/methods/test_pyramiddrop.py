"""PyramidDrop: the specification's counts, and what layers it cuts at."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.golden.adapters import outputs
from tests.methods.inputs import INFO, visual_tokens
from vtprune.methods.pyramiddrop import PyramidDrop, asking_rows


def counts(method, arrived, depth=32):
    """What is left behind every cut of a row in which all pictures arrived whole."""
    (stage,) = method.stages(dataclasses.replace(INFO, decoder_layers=depth))
    memory, found = {}, {}
    tokens = sum(arrived)
    for layer in stage.layers:
        found[layer] = int(stage.decide(visual_tokens(torch.rand(1, tokens), [arrived], layer, memory)).mask.sum())
    return found


def test_paper_preset():
    assert counts(PyramidDrop(), [576]) == {8: 288, 16: 144, 24: 72}
    assert counts(PyramidDrop(), [2880]) == {8: 1440, 16: 720, 24: 360}
    assert counts(PyramidDrop(), [576], depth=28) == {7: 288, 14: 144, 21: 72}
    listed = PyramidDrop(layers=[8, 16, 24], shares=[0.5, 0.25, 0.125])
    assert counts(listed, [576], depth=40) == {8: 288, 16: 144, 24: 72}


def test_other_budgets():
    """A number of tokens is per picture; shares are of what arrived at the first cut."""
    assert counts(PyramidDrop(keep=72), [576]) == {8: 288, 16: 144, 24: 72}
    assert counts(PyramidDrop(keep=8), [64, 8]) == {8: 40, 16: 24, 24: 16}
    assert counts(PyramidDrop(layers=(2, 4), shares=(0.9, 0.03)), [36]) == {2: 32, 4: 1}
    assert counts(PyramidDrop(keep=1.0), [17]) == {8: 17, 16: 17, 24: 17}


def test_shallow_models():
    """Cuts that fall on one layer are the last of them."""
    assert counts(PyramidDrop(), [64], depth=2) == {1: 8}
    assert counts(PyramidDrop(), [64], depth=3) == {1: 32, 2: 8}
    assert counts(PyramidDrop(), [64], depth=4) == {1: 32, 2: 16, 3: 8}


def test_bad_parameters():
    with pytest.raises(ValueError, match="layers must ascend"):
        PyramidDrop(layers=(8, 4))
    with pytest.raises(ValueError, match="shares must be 3 budgets"):
        PyramidDrop(shares=(0.5, 0.25))
    with pytest.raises(ValueError, match="layers from 1 to 31"):
        PyramidDrop(layers=(8, 32)).stages(INFO)
    with pytest.raises(ValueError, match="shares must be a ratio"):
        PyramidDrop(shares=(0.5, 0.25, 0.0))


def test_asking_rows():
    labels = torch.tensor([[-100, -100, 5, 6, -100, -100, 7, -100], [1, 2, -100, -100, -100, -100, -100, -100]])
    assert asking_rows(labels).nonzero().tolist() == [[0, 1], [0, 5]]


def test_golden_case_with_labels():
    """Two answers: the scores are means over the tokens before them, by whole matrices."""
    rng = np.random.default_rng(0)
    width, slots, first, visual = 8, 20, 3, 9
    case = {name: np.asarray(x) for name, x in dict(num_heads=2, num_layers=2, image_start=first).items()}
    case |= {name: np.asarray(x) for name, x in dict(image_tokens=visual, rms_norm_eps=1e-6, rope_theta=1e4).items()}
    case |= {"inputs_embeds": rng.normal(size=(slots, width)).astype(np.float32), "stage_layers": np.array([1])}
    case |= {"stage_keep": np.array([4]), "labels": np.where(np.isin(np.arange(slots), (14, 15, 18)), 7, -100)}
    case["w.norm.weight"] = np.ones(width, np.float32)
    shapes = {"mlp.gate_proj": (12, width), "mlp.up_proj": (12, width), "mlp.down_proj": (width, 12)}
    shapes |= {f"self_attn.{p}_proj": (width, width) for p in "qkvo"}
    for i in range(2):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            case[f"w.layers.{i}.{norm}.weight"] = np.ones(width, np.float32)
        for name, shape in shapes.items():
            case[f"w.layers.{i}.{name}.weight"] = rng.normal(size=shape).astype(np.float32)
    alone = {**case, "labels": np.where(np.arange(slots) == 14, 7, -100)}
    other = {**case, "labels": np.where(np.arange(slots) == 18, 7, -100)}
    out, one, two = (outputs("pyramiddrop", c) for c in (case, alone, other))
    np.testing.assert_allclose(out["score_0"], (one["score_0"] + two["score_0"]) / 2, atol=1e-6)
    np.testing.assert_array_equal(out["labels_after"], case["labels"][out["keep_index_0"]])
    assert len(out["keep_index_0"]) == slots - visual + 4


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "qwen3_vl"])
def test_every_layer_sees_its_share(name):
    """In a model: tokens per layer, dense positions on LLaVA only, and a cache of its own length for every stage."""
    family = FAMILIES[name]
    model, row = family.model(), family.row(4, IMAGE, 6)
    with vtprune.applied(model, "pyramiddrop", keep=8, layers=(1, 3)):
        x = family.inputs(row)
        out = model(**x, use_cache=True)
        cuts = [(p.layer, p.tokens_before, p.tokens_after) for p in vtprune.report(model).places if p.layer is not None]
        n = int(row.visual.sum())
        middle = round(n * (8 / n) ** 0.5 - 1e-6)
        assert cuts == [(1, n, middle), (3, middle, 8)]
        lengths = [layer.physical_length for layer in out.past_key_values.layers]
        text = len(row.ids) - n
        assert lengths == [n + text, middle + text, middle + text, 8 + text, 8 + text]
