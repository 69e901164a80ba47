"""apply and remove are a pair for every method on every family."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.cases import METHODS, everywhere, over, works
from tests.families import IMAGE, VIDEO
from vtprune.methods import Place, get_method


def hooks(model) -> dict[str, list[int]]:
    """Identities of all hooks of all modules."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    return {
        f"{name}.{kind}": [id(h) for h in getattr(module, kind).values()]
        for name, module in model.named_modules()
        for kind in kinds
    }


def instance_state(model) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.named_modules()}


@pytest.fixture(scope="module")
def untouched():
    """Logits of a prompt, and of the second token of its answer, by family and kind."""
    return {}


def second_token(model, x):
    """Logits of the second token of an answer, (rows, vocabulary)."""
    settings = dict(max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return model.generate(**x, **settings).logits[1]


@over(everywhere())
@torch.no_grad()
def test_nothing_stays_behind(model, family, method, untouched):
    """Neither of this method nor of any that was applied before to the model, which the tests share."""
    places = set(get_method(method[0]).places)
    kind = VIDEO if get_method(method[0]).needs_video else IMAGE
    x = family.inputs(family.row(5, kind, 7), family.row(3))
    if (family.name, kind) not in untouched:
        with_hidden = model(**x, output_hidden_states=True)  # transformers installs its own hooks once
        untouched[family.name, kind] = with_hidden.logits, second_token(model, x)
    expected, second = untouched[family.name, kind]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before, attributes, loss = hooks(model), instance_state(model), model.loss_function
    vtprune.apply(model, method[0], **method[1])
    assert hooks(model) != before
    assert list(model.state_dict()) == list(state)
    logits = model(**x).logits
    if places == {Place.CACHE}:
        report = vtprune.report(model)
        assert report.kv_bytes_after < report.kv_bytes_before
    if places <= {Place.ATTENTION, Place.CACHE} and torch.equal(logits, expected):  # changes what follows
        assert not torch.equal(second_token(model, x)[0], second[0])
    else:
        assert not torch.equal(logits[0, -1], expected[0, -1])
    vtprune.remove(model)
    assert hooks(model) == before
    assert instance_state(model) == attributes
    assert model.loss_function is loss
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(**x).logits, expected)


def test_what_does_not_work_leaves_nothing_behind(model, family):
    before, attributes, loss = hooks(model), instance_state(model), model.loss_function
    for name, parameters in METHODS.items():
        if not works(name, family.name):
            with pytest.raises(ValueError, match=f"{name}.* cannot work on"):
                vtprune.apply(model, name, **parameters)
            assert hooks(model) == before
            assert instance_state(model) == attributes
            assert model.loss_function is loss
