"""Models that accelerate has spread: weights that are read from disk when they are needed, and several devices."""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model

import vtprune
from tests.cases import SPECIAL
from tests.families import FAMILIES, IMAGE
from tests.logical_devices import logical_devices
from tests.tiny import BEAMS, ENCODES_FIRST
from vtprune.engine.decoder import DecoderStep
from vtprune.engine.merging import Running
from vtprune.integrations import integrate

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
ANSWER = {"do_sample": False, "max_new_tokens": 4}
# One for every way into the model.
METHODS = [
    ("divprune", {"keep": 0.3}),
    ("tome", {"keep": 0.5}),
    ("dymu", SPECIAL["dymu"]),  # slots that share a state
    ("fastv", {"layer": 3, "keep": 0.3}),
    ("sparsevlm", {"keep": 0.3, "layers": (1, 3), "recycle": 0.0}),
    ("pyramiddrop", {"layers": (1, 3)}),
    ("gemfilter", {"keep": 0.3, "layer": 3}),  # a trial run over both devices
    ("visionzip", {"keep": 0.3}),
    ("snapkv", {"keep": 0.3}),
    ("h2o", {"keep": 0.3}),
    ("spatten", {"keep": 0.3}),  # notes from layer to layer
    ("zipcache", {}),
    ("tokenselect", {}),
    ("yopo", SPECIAL["yopo"]),
    ("ee_mllm", {}),
    ("token_sparse_attention", {}),
    ("corematching", {"neurons": True}),
    ("divprune:keep=0.7+fastv:layer=3,keep=0.5+snapkv:keep=0.5", {}),
]
ON_QWEN = [method for method in METHODS if method[0] not in ("tome", "dymu", "visionzip")][::2]
BOTH = pytest.mark.parametrize(("family", "methods"), [("llava-clip", METHODS), ("qwen2_5_vl", ON_QWEN)])


def device_map(model, first, other):
    """Two layers of encoder and decoder, and what is beside layers, on one device, all further layers on another."""
    integration = integrate(model)
    layered = (integration.all_encoder_layers, integration.decoder_layers)
    found = {}

    def place(name, module):
        if any(module is layers for layers in layered):
            found.update({f"{name}.{i}": first if i < 2 else other for i in range(len(module))})
        elif any(inner is layers for inner in module.modules() for layers in layered):
            for part, inner in module.named_children():
                place(f"{name}.{part}", inner)
        else:
            found[name] = first

    for name, module in model.named_children():
        place(name, module)
    return found


def prompt(family):
    return family.inputs(family.row(5, IMAGE, 7), family.row(9, IMAGE, 4, seed=3))


def run(model, method, inputs, **settings):
    """Logits of a prompt, an answer, and what was saved."""
    with vtprune.applied(model, method[0], **method[1]):
        logits = model(**inputs).logits.cpu()
        saved = vtprune.report(model)  # steps of every picture, too
        return logits, model.generate(**inputs, **ANSWER, **settings).cpu(), saved


def check(name, found, expected):
    torch.testing.assert_close(found[0], expected[0], **CLOSE, msg=lambda message: f"{name}: {message}")
    assert torch.equal(found[1], expected[1]), name
    assert found[2] == expected[2], name


@BOTH
@torch.no_grad()
def test_weights_on_disk(family, methods, tmp_path):
    """Layers are empty outside of their calls; the encoder's outputs reach the multimodal module as copies."""
    family = FAMILIES[family]
    model, spread, inputs = family.model(), family.model(), prompt(family)
    dispatch_model(spread, device_map(spread, "cpu", "disk"), offload_dir=tmp_path, skip_keys=["past_key_values"])
    assert spread.model.language_model.layers[2].mlp.up_proj.weight.is_meta
    for method in methods:
        check(method[0], run(spread, method, inputs), run(model, method, inputs))


def on_two_devices(family):
    """A model whose devices are not there, and inputs for it."""
    model = family.model().requires_grad_(False)
    dispatch_model(model, device_map(model, "cuda:0", "cuda:1"), main_device="cuda:0", skip_keys=["past_key_values"])
    return model, {name: x.to("cuda:0") for name, x in prompt(family).items()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="these devices would be taken for the GPUs that are there")
class TestTwoDevices:
    @BOTH
    @torch.no_grad()
    def test_methods(self, family, methods):
        family = FAMILIES[family]
        model = family.model()
        expected = [run(model, method, prompt(family)) for method in methods]
        with logical_devices():
            spread, inputs = on_two_devices(family)
            for method, before in zip(methods, expected, strict=True):
                check(method[0], run(spread, method, inputs), before)

    @torch.no_grad()
    def test_beams_and_deepstack(self):
        family, method = FAMILIES["qwen3_vl"], ("fastv:layer=2,keep=0.5+snapkv:keep=0.5", {})
        expected = run(family.model(), method, prompt(family), num_beams=BEAMS)
        with logical_devices():
            spread, inputs = on_two_devices(family)
            check("qwen3_vl", run(spread, method, inputs, num_beams=BEAMS), expected)

    @torch.no_grad()
    def test_notices_what_stays_behind(self, monkeypatch):
        """What these tests rest on: operators refuse to mix devices, and the engine would."""
        with logical_devices():
            with pytest.raises(RuntimeError, match="must be on one device"):
                torch.ones(3, device="cuda:0") + torch.ones(3, device="cuda:1")
            spread, inputs = on_two_devices(FAMILIES["llava-clip"])
            monkeypatch.setattr(DecoderStep, "_move", lambda *_: None)
            monkeypatch.setattr(Running, "beside", lambda self, _: self)
            for method in ("tokenselect", "ats"):
                with pytest.raises(RuntimeError, match="must be on one device"):
                    run(spread, (method, {}), inputs)


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers encodes pictures in the forward call")
@torch.no_grad()
def test_encoder_runs_serve_one_call():
    """Features without a run are refused, also behind a call of the same model whose features had one."""
    family = FAMILIES["llava-clip"]
    model, inputs = family.model(), prompt(family)
    vtprune.apply(model, "divprune", keep=0.3)
    expected = model(**inputs).logits
    features = model.get_image_features(inputs.pop("pixel_values"))
    assert torch.equal(model(**inputs, mm_encoder_outputs={"image": features}).logits, expected)
    bare = type(features)(features)
    for module in (model, model.model):
        with pytest.raises(ValueError, match="were encoded without divprune"):
            module(**inputs, mm_encoder_outputs={"image": bare})
