"""apply and remove are a pair: afterwards the state dict, the hooks and the outputs are as before."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.cases import METHODS, works
from tests.engine.test_nothing_stays_behind import hooks
from tests.tiny import TOKENS, batch, picture, prompt, tiny_llava


@pytest.fixture
def model():
    return tiny_llava()


@pytest.fixture
def x():
    return {**batch(prompt(5, 0, 7), prompt(3)), "pixel_values": picture()}


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in METHODS if works(name, "llava")])
def test_hidden_states_captured_before_apply_see_the_changes(name, model, x):
    """transformers' capture hooks, installed earlier, must record what really flows."""
    model(**x, output_hidden_states=True)
    vtprune.apply(model, name, **METHODS[name])
    late = tiny_llava()
    vtprune.apply(late, name, **METHODS[name])
    torch.testing.assert_close(model(**x).logits, late(**x).logits)


@torch.no_grad()
def test_applying_again_replaces(model, x):
    vtprune.apply(model, "divprune", keep=0.5)
    model(**x)  # transformers installs its capture hooks in the vision tower, once
    count = sum(map(len, hooks(model).values()))
    vtprune.apply(model, "divprune", keep=0.25)
    model(**x)
    assert vtprune.report(model).visual_tokens_after == TOKENS // 4
    assert sum(map(len, hooks(model).values())) == count


@torch.no_grad()
def test_applied_restores_what_was_applied_before(model, x):
    vtprune.apply(model, "divprune", keep=0.5)
    with vtprune.applied(model, "uniform", keep=0.25):
        model(**x)
        assert vtprune.report(model).methods == ("uniform",)
    model(**x)
    assert vtprune.report(model).methods == ("divprune",)
    assert vtprune.report(model).visual_tokens_after == TOKENS // 2
    vtprune.remove(model)
    before = hooks(model)
    with pytest.raises(KeyError), vtprune.applied(model, "uniform", keep=0.25):
        raise KeyError
    assert hooks(model) == before


@torch.no_grad()
def test_chain(model, x):
    chain = ["tome:keep=0.5", ("divprune", {"keep": 0.5}), ("fastv", {"layer": 2, "keep": 0.5}), "exit:layer=4"]
    vtprune.apply(model, chain)
    logits = model(**x).logits
    places = [(p.method, p.tokens_before, p.tokens_after) for p in vtprune.report(model).places]
    assert places[-3:] == [("divprune", 18, 9), ("fastv", 9, 4), ("exit", 4, 0)]
    assert logits.shape[1] == 12
    vtprune.apply(model, ["tome", "fastv:layer=2,keep=0.5", "exit:layer=4"], keep=0.5)
    model(**x)
    assert [p.tokens_after for p in vtprune.report(model).places][-3:] == [18, 9, 0]


@pytest.mark.parametrize(
    ("method", "settings", "error", "words"),
    [
        ("divprune", {"keep": 0}, ValueError, "keep must be .* got 0"),
        ("divprune", {"keep": -0.5}, ValueError, "got -0.5"),
        ("divprune", {"keep": 1.5}, ValueError, "got 1.5"),
        ("divprune", {"keep": 25.0}, ValueError, "write keep=0.25"),
        ("divprune", {"keep": float("nan")}, ValueError, "got nan"),
        ("divprune", {"keep": "0.5"}, TypeError, "got '0.5'"),
        ("divprune", {"keep": True}, TypeError, "got True"),
        ("divprun", {"keep": 0.5}, ValueError, "Did you mean 'divprune'"),
        ("divprune", {"kep": 0.5}, ValueError, "no parameter 'kep'.*'keep'"),
        ("fastv", {"layer": 5}, ValueError, "layer must be .* got 5"),
        ("fastv", {"layer": 0}, ValueError, "layer must be"),
        ("exit", {"layer": 99}, ValueError, "got 99"),
        ("exit", {"keep": 0.5}, ValueError, "keep"),
        ([], {}, ValueError, "at least one method"),
        (3, {}, TypeError, "method"),
        (["fastv", "divprune"], {}, ValueError, "order of their places"),
        (["tome", "fourier"], {}, ValueError, "fourier needs every token"),
        (["divprune", "fourier"], {}, ValueError, "fourier needs every token"),
        (["divprune", "hired"], {}, ValueError, "hired needs every token"),
        (["tome", "mustdrop"], {}, ValueError, "put mustdrop first"),
        (["divprune", "fastv"], {"keep": 0.5}, ValueError, "several take it"),
        ("tome", {"keep": 1}, ValueError, "keep must leave at least"),
    ],
)
def test_bad_input_changes_nothing(model, method, settings, error, words):
    before = hooks(model)
    with pytest.raises(error, match=words):
        vtprune.apply(model, method, **settings)
    assert hooks(model) == before
    vtprune.apply(model, "uniform", keep=0.5)
    applied = hooks(model)
    with pytest.raises(error, match=words):
        vtprune.apply(model, method, **settings)
    assert hooks(model) == applied


def test_models_that_cannot_work():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = LlamaForCausalLM(config)
    with pytest.raises(ValueError, match="takes no pictures"):
        vtprune.apply(text, "divprune", keep=0.5)
    with pytest.raises(TypeError, match="got str"):
        vtprune.apply("llava", "divprune", keep=0.5)
    with pytest.raises(ValueError, match="not supported"):
        vtprune.apply(torch.nn.Linear(2, 2), "divprune", keep=0.5)
    with pytest.raises(ValueError, match="no method is applied"):
        vtprune.report(tiny_llava())


@torch.no_grad()
def test_budget_above_the_token_count_keeps_all(model, x):
    expected = model(**x).logits
    vtprune.apply(model, "divprune", keep=10_000)
    assert torch.equal(model(**x).logits, expected)
    report = vtprune.report(model)
    assert report.visual_tokens_after == TOKENS
    assert report.places[0].note == "kept everything"


@torch.no_grad()
def test_report_before_the_first_picture(model, x):
    vtprune.apply(model, "divprune", keep=0.5)
    assert vtprune.report(model) is None
    model(input_ids=prompt(4)[None])
    assert vtprune.report(model) is None
    model(**x)
    assert vtprune.report(model).visual_tokens_before == TOKENS


@torch.no_grad()
def test_odd_select_strategies():
    """[CLS] kept as a token, or the first patch dropped: no grid, so grid methods refuse, others work."""
    for tower, strategy, tokens in (("clip", "full", TOKENS + 1), ("siglip", "default", TOKENS - 1)):
        model = tiny_llava(tower)
        model.config.vision_feature_select_strategy = strategy
        ids = torch.cat((prompt(3), torch.full((tokens,), 1), prompt(4)))[None]
        for name in ("fourier", "tome"):
            with pytest.raises(ValueError, match="plain grid"):
                vtprune.apply(model, name, keep=0.5)
        for name in ("divprune", "fastervlm", "fastv"):
            vtprune.apply(model, name, keep=10)
            assert model(input_ids=ids, pixel_values=picture()).logits.shape[1] == 17


def test_parts_of_models_and_pickles_are_refused_with_advice(model):
    import pickle

    with pytest.raises(ValueError, match="give the whole"):
        vtprune.apply(model.model, "divprune", keep=0.5)
    vtprune.apply(model, "divprune", keep=0.5)
    with pytest.raises(TypeError, match=r"vtprune\.remove"):
        pickle.dumps(model)


@torch.no_grad()
def test_a_feature_layer_given_in_a_call_is_refused(model, x):
    vtprune.apply(model, "divprune", keep=0.5)
    with pytest.raises(ValueError, match=r"vision_feature_layer=-1 differs from the -2"):
        model(**x, vision_feature_layer=-1)
