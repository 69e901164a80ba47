"""The ideal is ideal: it computes exactly as much as the method, the same where it can be, and nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools

import pytest
import torch

import vtprune
from tests.bench.conftest import chain_of, model_of, prompt_of
from tests.families import FAMILIES, IMAGE, IMAGE_TOKEN, VIDEO
from vtprune.bench import record, replaying
from vtprune.bench.count import count_request
from vtprune.bench.generate import generate
from vtprune.bench.hooks import Hooks
from vtprune.engine.flops import attention_flops, linear_flops
from vtprune.integrations import integrate
from vtprune.methods.base import Keep, Method, Place, Stage

METHODS = {
    "fastervlm": chain_of("fastervlm", 0.3),
    "divprune": chain_of("divprune", 0.3),
    "fourier": chain_of("fourier", 0.3),
    "fastv": chain_of("fastv", 0.3, layer=2),
    "resize": chain_of("resize", 0.3),
    "showui": chain_of("showui", 0.3, threshold=70.0, skip_layers=(1, 3)),
    "exit": chain_of("exit", layer=3),
    "todre": chain_of("todre", 0.3),
    "tome": chain_of("tome", 0.5),
    "chain": chain_of(["divprune:keep=0.5", "fastv:layer=2,keep=0.5"]),
}
AT_DOOR = ("fastervlm", "divprune", "fourier", "resize")
PROMPTS = {
    "picture": [(5, IMAGE, 7)],
    "batch": [(5, IMAGE, 7), (3, IMAGE, 2, IMAGE, 4), (9,)],
    "video": [(5, VIDEO, 7)],
}


def cases():
    for family in FAMILIES.values():
        for prompt in ("batch", "video") if VIDEO in family.kinds else ("batch",):
            for method in METHODS:
                yield pytest.param(family.name, prompt, method, id=f"{family.name}-{prompt}-{method}")


def planned(family, prompt, method):
    model, request = model_of(family), prompt_of(family, *PROMPTS[prompt])
    try:
        return model, request, record(model, METHODS[method], request)
    except ValueError as error:
        if "cannot work on" in str(error) or "must leave at least" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize(("family", "prompt", "method"), cases())
def test_as_much_is_computed(family, prompt, method):
    model, request, plan = planned(family, prompt, method)
    with vtprune.applied(model, METHODS[method]), seen_by_layers(model) as own:
        generate(model, request)
    with replaying(model, plan), seen_by_layers(model) as best:
        generate(model, request)
    assert best == own
    assert tuple(best["decoder"][0]) == plan.lengths


@dataclasses.dataclass(frozen=True)
class Behind(Method):
    """Drops every other patch from the output of the second vision block."""

    name = "behind"
    kind = "pruning"
    places = (Place.ENCODER_LAYER,)

    def stages(self, model):
        return [Stage(Place.ENCODER_LAYER, self.decide, (1,), after_block=True, prunes=True)]

    def decide(self, tokens):
        number = torch.arange(tokens.sizes.shape[1])
        return Keep(((number % 2 == 0) | (number < tokens.protected)).expand(tokens.sizes.shape))


@pytest.mark.parametrize("family", ["llava-clip", "llava-siglip", "llava_next"])
def test_patches_that_leave_behind_a_block(family):
    model, request = model_of(family), prompt_of(family)
    plan = record(model, [Behind()], request)
    with vtprune.applied(model, Behind()), seen_by_layers(model) as own:
        generate(model, request)
    with replaying(model, plan), seen_by_layers(model) as best:
        generate(model, request)
    assert best == own
    assert len(set(best["mlp"])) == 2
    assert best["mlp"][-1] < 0.6 * best["mlp"][0]


@contextlib.contextmanager
def seen_by_layers(model):
    """Tokens that the layers and their MLPs are given: of the decoder call by call, of the encoder in all."""
    integration = integrate(model)
    seen = {"decoder": [], "cache": [], "attention": [], "mlp": [], "projector": []}
    language_model = integration.language_model
    with Hooks() as hooks:
        hooks.before(language_model, lambda *_: seen["decoder"].append([]))
        hooks.after(language_model, lambda *x: seen["cache"].append(lengths_of(x[-1].past_key_values)))
        for layer in language_model.layers:
            hooks.before(layer.mlp, lambda _, args, __: seen["decoder"][-1].append(args[0].shape[1]))
        for block in integration.encoder_blocks:
            hooks.after(block.projections[0], lambda *x: seen["attention"].append(x[-1].shape[-2]))
            hooks.before(block.mlp, lambda _, args, __: seen["mlp"].append(args[0].shape[-2]))
        for projector in integration.projectors:
            hooks.before(projector, lambda _, args, __: seen["projector"].append(args[0].shape[-2]))
        yield seen


def lengths_of(cache):
    return [layer.keys.shape[2] for layer in cache.layers]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llava-clip", "qwen3_vl"])
def test_no_more_is_done(family, method):
    model, request, plan = planned(family, "picture", method)
    untouched = count_request(model, request, arm=contextlib.nullcontext)
    own = count_request(model, request, arm=lambda: vtprune.applied(model, METHODS[method]))
    best = count_request(model, request, arm=lambda: replaying(model, plan))
    assert best.kv_bytes == own.kv_bytes < untouched.kv_bytes
    assert best.peak_bytes <= own.peak_bytes
    for phase in ("encoder", "tower", "prefill"):
        assert best.flops[phase] <= own.flops[phase]
        assert best.calls[phase].operators <= own.calls[phase].operators
    assert best.flops["prefill"] < untouched.flops["prefill"]
    # No decision and no search: the operators of the bare model, a slice where tokens leave, and in the encoder
    # an addition for each block that does not see its own.
    slices = 2 * sum(a != b for a, b in itertools.pairwise(plan.lengths))
    assert best.calls["prefill"].operators <= untouched.calls["prefill"].operators + slices
    assert best.calls["prefill"].waits <= untouched.calls["prefill"].waits
    assert best.calls["decode"].operators <= untouched.calls["decode"].operators
    assert best.calls["encoder"].operators <= untouched.calls["encoder"].operators + 10 * len(plan.blocks) + 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llava-clip", "qwen2_5_vl", "internvl"])
def test_flops_are_those_of_the_formulas(family, method):
    """Counted and by the report's formulas, which leave out the patch embedding: a tenth of so small an encoder."""
    model, request, plan = planned(family, "picture", method)
    best = count_request(model, request, arm=lambda: replaying(model, plan))
    text = model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    formula = 0
    for layer, n in zip(model.model.language_model.layers, plan.lengths, strict=True):
        formula += n * linear_flops(layer) + attention_flops(n, n, text.num_attention_heads * head)
    assert best.flops["prefill"] == pytest.approx(formula, rel=0.01)
    whole = best.flops["encoder"] + best.flops["prefill"]
    assert whole == pytest.approx(plan.report.prefill_flops_after, rel=0.12)


@pytest.mark.parametrize("family", FAMILIES)
def test_keep_all_is_the_untouched_model(family):
    model, request = model_of(family), prompt_of(family)
    plan = record(model, chain_of("divprune", 1.0), request)
    untouched = logits_of(model, request)
    with replaying(model, plan):
        assert torch.equal(logits_of(model, request), untouched)


@pytest.mark.parametrize(("family", "prompt", "method"), [c for c in cases() if c.values[2] in AT_DOOR])
def test_at_the_door_it_is_the_same_computation(family, prompt, method):
    """The method's logits, of the prompt and while decoding."""
    model, request, plan = planned(family, prompt, method)
    with vtprune.applied(model, METHODS[method]):
        own = logits_of(model, request)
    with replaying(model, plan):
        torch.testing.assert_close(logits_of(model, request), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["fastv", "exit", "chain"])
@pytest.mark.parametrize("family", ["llava-clip", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_between_layers_only_the_choice_differs(family, method, attention):
    """Given which slots stay, instead of the last ones, the ideal computes what the method does."""
    model = model_of(family) if attention == "sdpa" else FAMILIES[family].model(attention)
    request = prompt_of(family)
    plan = record(model, METHODS[method], request)
    visual = (request.inputs["input_ids"][0] == IMAGE_TOKEN).nonzero().squeeze(1)
    (shown,) = plan.report.pictures
    text = set(range(request.inputs["input_ids"].shape[1])) - set(visual.tolist())
    before = sorted(text | set(visual[list(shown.entered)].tolist()))
    after = text | set(visual[list(shown.kept)].tolist())
    index = torch.tensor([[i for i, slot in enumerate(before) if slot in after]])
    first = plan.steps[0]
    layers = {i: dataclasses.replace(x, index=index) for i, x in first.layers.items()}
    plan = dataclasses.replace(plan, steps=(dataclasses.replace(first, layers=layers), *plan.steps[1:]))
    with vtprune.applied(model, METHODS[method]):
        own = logits_of(model, request)
    with replaying(model, plan):
        torch.testing.assert_close(logits_of(model, request), own, rtol=1e-5, atol=1e-5)


def logits_of(model, request):
    """Logits of the chosen tokens: the prompt's last, and each step's."""
    found = []
    with Hooks() as hooks:
        hooks.after(model, lambda *x: found.append(x[-1].logits[:, -1]))
        generate(model, request)
    return torch.stack(found)


def test_the_model_is_left_as_it_was():
    model, request = model_of("llava-clip"), prompt_of("llava-clip")
    before = logits_of(model, request)
    plan = record(model, METHODS["tome"], request)
    with replaying(model, plan):
        generate(model, request)
    assert torch.equal(logits_of(model, request), before)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in integrate(model).language_model.layers)
    assert "get_image_features" not in model.model.__dict__


def test_a_prompt_without_pictures_is_refused():
    with pytest.raises(ValueError, match="without a picture"):
        record(model_of("llava-clip"), METHODS["divprune"], prompt_of("llava-clip", (9,)))


def test_shared_states_have_no_ideal():
    with pytest.raises(ValueError, match="no ideal where merged tokens share hidden states"):
        record(model_of("llava-clip"), chain_of("dymu", thresholds=0.3), prompt_of("llava-clip"))
    assert record(model_of("llava-clip"), chain_of("dymu", thresholds=0.3, unmerge=False), prompt_of("llava-clip"))
