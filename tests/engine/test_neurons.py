"""Core neurons: decoded tokens compute what they compute with all other channels of an MLP set to zero."""

from __future__ import annotations

import contextlib

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.tiny import BEAMS, batch, picture, prompt, tiny_llava
from vtprune.engine.neurons import Core
from vtprune.methods.corematching import CoreMatching, core_neurons

CLOSE = dict(atol=1e-4, rtol=1e-4)
METHOD = CoreMatching(keep=1.0, neurons=True, neuron_layers=(1, 3), token_share=0.5)
LAYERS = (1, 2, 3)


@contextlib.contextmanager
def silenced(model, picks):
    """Hooks of the test's own: a prompt names its neurons, which are all that single tokens behind it have."""
    chosen, handles = {}, []

    def hook(layer):
        def silence(module, args):
            x = args[0]
            if x.shape[1] > 1:
                if layer not in chosen or picks["anew"]:
                    chosen[layer] = core_neurons(x, None, 0.5, 0.4)
                return None
            return (x * chosen[layer].unsqueeze(1),)

        return silence

    for layer in LAYERS:
        part = model.model.language_model.layers[layer].mlp.down_proj
        handles.append(part.register_forward_pre_hook(hook(layer)))
    yield chosen
    for handle in handles:
        handle.remove()


def answer(model, x, **settings):
    out = model.generate(
        **x, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True, **settings
    )
    return out.sequences[:, x["input_ids"].shape[1] :], torch.stack(out.logits, 1), out.past_key_values


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_decoding_with_core_neurons(name):
    """Each row of a padded batch as alone, one without a picture as ever."""
    family = FAMILIES[name]
    model = family.model()
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, IMAGE, 2, seed=2), family.row(9, seed=3)]
    expected = []
    for row in rows[:2]:
        with silenced(model, {"anew": False}):
            expected.append(answer(model, family.inputs(row))[:2])
    expected.append(answer(model, family.inputs(rows[2]))[:2])
    with vtprune.applied(model, METHOD):
        for row, (ids, logits) in zip(rows, expected, strict=True):
            found, close, _ = answer(model, family.inputs(row))
            assert torch.equal(found, ids)
            torch.testing.assert_close(close, logits, **CLOSE)
        for chosen in (rows, rows[:2]):
            found, close, _ = answer(model, family.inputs(*chosen))
            for i in range(len(chosen)):
                assert torch.equal(found[i], expected[i][0][0])
                torch.testing.assert_close(close[i], expected[i][1][0], **CLOSE)


@torch.no_grad()
def test_weights_are_really_sliced_and_belong_to_the_cache():
    model = tiny_llava()
    x = {**batch(prompt(5, 0, 7)), "pixel_values": picture()}
    forwards = [layer.mlp.forward for layer in model.model.language_model.layers]
    sizes = []
    part = model.model.language_model.layers[2].mlp.down_proj
    part.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1]))
    with vtprune.applied(model, METHOD):
        _, _, cache = answer(model, x)
        report = vtprune.report(model)
    assert sizes == [48], "the whole projection runs in the prefill only"
    for i, layer in enumerate(cache.layers):
        if i not in LAYERS:
            assert layer.core is None
            continue
        assert isinstance(layer.core, Core)
        index, (gate, up, down), _ = layer.core.sliced
        assert len(index) == int(0.4 * 64) == 25
        assert (gate.shape, up.shape, down.shape) == ((25, 48), (25, 48), (48, 25))
    assert report.notes == tuple(f"corematching decodes with 25 of 64 neurons in layer {i}." for i in LAYERS)
    assert [layer.mlp.forward for layer in model.model.language_model.layers] == forwards
    assert not any("forward" in layer.mlp.__dict__ for layer in model.model.language_model.layers)


@torch.no_grad()
def test_rows_of_the_cache_take_their_neurons_along():
    model = tiny_llava()
    x = {**batch(prompt(5, 0, 7, seed=1), prompt(3, 0, 9, seed=2)), "pixel_values": picture(2)}
    more = torch.tensor([[7], [9]])
    with vtprune.applied(model, METHOD):
        caches = [model(**x, use_cache=True).past_key_values for _ in range(3)]
        plain = model(input_ids=more, past_key_values=caches[0]).logits
        caches[1].reorder_cache(torch.tensor([1, 0]))
        turned = model(input_ids=more.flip(0), past_key_values=caches[1]).logits
        caches[2].batch_repeat_interleave(2)
        twice = model(input_ids=more.repeat_interleave(2, 0), past_key_values=caches[2]).logits
    torch.testing.assert_close(turned.flip(0), plain, **CLOSE)
    torch.testing.assert_close(twice[::2], plain, **CLOSE)
    torch.testing.assert_close(twice[1::2], plain, **CLOSE)


@torch.no_grad()
def test_further_turns_and_beams():
    """A turn of text runs on all neurons and leaves the choice; one with a picture chooses anew."""
    model = tiny_llava()
    first, text, second = prompt(4, 0, 3, seed=1), prompt(6, seed=2), prompt(2, 0, 3, seed=3)
    found = {}
    for name in ("silenced", "applied"):
        picks = {"anew": False}
        with silenced(model, picks) if name == "silenced" else vtprune.applied(model, METHOD):
            cache = model(**batch(first), pixel_values=picture(), use_cache=True).past_key_values
            logits = [model(input_ids=torch.tensor([[5]]), past_key_values=cache).logits]
            logits.append(model(input_ids=text[None], past_key_values=cache).logits)
            logits.append(model(input_ids=torch.tensor([[6]]), past_key_values=cache).logits)
            picks["anew"] = True
            logits.append(model(input_ids=second[None], pixel_values=picture(seed=4), past_key_values=cache).logits)
            logits.append(model(input_ids=torch.tensor([[7]]), past_key_values=cache).logits)
            found[name] = torch.cat(logits, 1)
    torch.testing.assert_close(found["applied"], found["silenced"], **CLOSE)
    x = {**batch(prompt(5, 0, 7)), "pixel_values": picture()}
    settings = dict(max_new_tokens=5, do_sample=False, num_beams=BEAMS)
    with silenced(model, {"anew": False}):
        expected = model.generate(**x, **settings)
    with vtprune.applied(model, METHOD):
        assert torch.equal(model.generate(**x, **settings), expected)


@torch.no_grad()
def test_without_a_cache_everything_runs():
    model = tiny_llava()
    x = {**batch(prompt(5, 0, 7)), "pixel_values": picture(), "max_new_tokens": 5, "do_sample": False}
    expected = model.generate(**x, use_cache=False)
    with vtprune.applied(model, METHOD):
        assert torch.equal(model.generate(**x, use_cache=False), expected)


def test_refusals():
    model = tiny_llava()

    class Packed(torch.nn.Linear):
        pass

    mlp = model.model.language_model.layers[2].mlp
    mlp.up_proj = Packed(48, 64, bias=False)
    with pytest.raises(ValueError, match="corematching cannot slice the weights of Packed"):
        vtprune.apply(model, METHOD)
    vtprune.apply(model, "corematching", layer=2)
    with pytest.raises(ValueError, match="the last of neuron_layers must be a layer from 0 to 4"):
        vtprune.apply(tiny_llava(), "corematching", neurons=True, neuron_layers=(1, 5))
    with pytest.raises(ValueError, match="corematching chooses neurons of layer 3, whose MLP ee_mllm lets run"):
        vtprune.apply(
            tiny_llava(), ["corematching:layer=1,neurons=True", ("ee_mllm", {"update": "frozen", "layer": 3})]
        )
