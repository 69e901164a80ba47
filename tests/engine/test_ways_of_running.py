"""Ways of running a model: threads, precisions, training, compilation, other libraries' hooks, other caches."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from transformers import StaticCache

import vtprune
from tests.cases import methods_twice, over
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.tiny import ENCODES_FIRST, batch, picture, prompt, tiny_llava

CLOSE = dict(atol=1e-4, rtol=1e-4)
# On others transformers keeps rope_deltas of the last prompt on the model: no two threads may share one.
UNTYPED = [name for name, family in FAMILIES.items() if not family.typed]


@pytest.fixture
def model(family):
    """One of its own: some tests change it."""
    return family.model()


@pytest.fixture
def row(family):
    return family.row(5, IMAGE, 7)


@pytest.fixture
def inputs(family, row):
    return family.inputs(row)


@over(methods_twice("threads", UNTYPED))
def test_two_threads_share_one_model(family, model, method):
    """Each thread gets its own answer and its own report, however the calls interleave."""
    vtprune.apply(model, method[0], **method[1])
    prompts = [[family.row(5, IMAGE, 7, seed=1)], [family.row(2, IMAGE, 4, IMAGE, 3, seed=2), family.row(3, seed=3)]]
    requests = [family.inputs(*rows) for rows in prompts]
    with torch.no_grad():
        expected = [model.generate(**x, max_new_tokens=4, do_sample=False) for x in requests]
    before = [sum(row.tokens for row in rows) for rows in prompts]
    errors: list[str] = []
    start = threading.Barrier(2)

    def work(i: int) -> None:
        start.wait()
        with torch.no_grad():
            for _ in range(2):
                if not torch.equal(model.generate(**requests[i], max_new_tokens=4, do_sample=False), expected[i]):
                    errors.append(f"thread {i} got another answer")
        if vtprune.report(model).visual_tokens_before != before[i]:
            errors.append(f"thread {i} got another report")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@over(methods_twice("bf16"))
@torch.no_grad()
def test_bf16(family, model, method):
    """bf16 decides nearly as float32 does, and never leaves its own precision."""
    model = model.to(torch.bfloat16)
    vtprune.apply(model, method[0], **method[1])
    parts = (5, IMAGE, 7, VIDEO, 2) if VIDEO in family.kinds else (5, IMAGE, 7)
    inputs = family.inputs(family.row(*parts))
    inputs = {k: v.to(torch.bfloat16) if v.is_floating_point() and "pixel" in k else v for k, v in inputs.items()}
    out = model(**inputs)
    assert out.logits.dtype == torch.bfloat16
    assert bool(out.logits.isfinite().all())
    assert out.past_key_values.layers[0].keys.dtype == torch.bfloat16
    assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape == (1, inputs["input_ids"].shape[1] + 4)


@over(methods_twice("gradients"))
def test_gradients_flow(model, method, row, inputs):
    """A pruned model trains what the untouched one trains, but for an image newline that has left."""
    labels = row.ids.masked_fill(row.visual, -100)[None]

    def reached() -> set[str]:
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 1e-12)}

    model.train()
    expected = reached()
    vtprune.apply(model, method[0], **method[1])
    missing = {n for n in expected - reached() if "k_proj.bias" not in n and "k_norm" not in n and "bias" not in n}
    assert missing <= {"model.image_newline"}
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_training_step_equals_finite_difference():
    """The gradient of a pruned model is the gradient of what it computes."""
    model = tiny_llava().double()
    inputs = {"input_ids": prompt(5, 0, 7)[None], "pixel_values": picture().double()}
    vtprune.apply(model, "fastv", layer=2, keep=0.3)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 1, -100)
    weight = model.model.multi_modal_projector.linear_2.weight
    model(**inputs, labels=labels).loss.backward()
    direction = weight.grad / weight.grad.norm()
    with torch.no_grad():
        losses = []
        for step in (1e-3, -1e-3):
            weight += step * direction
            losses.append(model(**inputs, labels=labels).loss)
            weight -= step * direction
    slope = (losses[0] - losses[1]) / 2e-3  # transformers computes losses in float32
    torch.testing.assert_close(slope.double(), weight.grad.norm(), rtol=2e-3, atol=1e-4)


def test_gradient_checkpointing_is_refused_between_layers(family, model, row, inputs):
    model.gradient_checkpointing_enable()
    model.train()
    for name in ("fastv",) if family.typed or family.name == "vipllava" else ("fastv", "tome"):
        vtprune.apply(model, name, keep=0.5)
        with pytest.raises(ValueError, match=f"{name}.*gradient checkpointing"):
            model(**inputs)
    vtprune.apply(model, "divprune", keep=0.5)
    labels = row.ids.masked_fill(row.visual, -100)[None]
    model(**inputs, labels=labels).loss.backward()


@torch.no_grad()
@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_static_cache_is_refused_by_name(model, inputs, name):
    vtprune.apply(model, name, keep=0.5)
    with pytest.raises(ValueError, match=f"{name}.*(StaticCache|static)"):
        model.generate(**inputs, max_new_tokens=3, cache_implementation="static")
    with pytest.raises(ValueError, match=f"{name}.*StaticCache"):
        model(**inputs, past_key_values=StaticCache(config=model.config.text_config, max_cache_len=128))


@torch.no_grad()
@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers does not hand encoded pictures over")
def test_prefill_in_chunks_is_refused(model, inputs):
    vtprune.apply(model, "divprune", keep=0.5)
    with pytest.raises(ValueError, match=r"(prefill_chunk_size|does not match|do not match|placeholder)"):
        model.generate(**inputs, max_new_tokens=3, prefill_chunk_size=16)


def without_pixels(inputs):
    """Arguments of an encoder call, and what is left of the model's."""
    names = [n for n in inputs if n in ("pixel_values", "image_sizes", "image_grid_thw")]
    return {n: inputs[n] for n in names}, {n: v for n, v in inputs.items() if "pixel" not in n}


@torch.no_grad()
@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers does not hand encoded pictures over")
def test_features_encoded_before_apply_are_refused(model, inputs):
    pixels, rest = without_pixels(inputs)
    features = model.model.get_image_features(**pixels, return_dict=True)
    vtprune.apply(model, "divprune", keep=0.5)
    with pytest.raises(ValueError, match=r"encode pictures after vtprune\.apply"):
        model(**rest, mm_encoder_outputs={"image": features})
    features = model.model.get_image_features(**pixels, return_dict=True)
    logits = model(**rest, mm_encoder_outputs={"image": features}).logits
    torch.testing.assert_close(logits, model(**inputs).logits, **CLOSE)


@torch.no_grad()
def test_placeholders_and_pictures_must_match(family, model, inputs):
    vtprune.apply(model, "divprune", keep=0.5)
    expected = model(**inputs).logits
    with pytest.raises((ValueError, StopIteration), match=r"(placeholder|do not match|^$)"):
        model(**family.inputs(family.row(5, IMAGE, 3, IMAGE), new=(family.row(5, IMAGE),)))
    assert torch.equal(model(**inputs).logits, expected), "a failed call leaves nothing behind"


@torch.no_grad()
def test_a_failed_call_leaves_the_model_usable(family, model, inputs):
    vtprune.apply(model, "fastv", keep=0.5)
    expected = model(**inputs).logits
    for broken in (model.model.language_model.layers[3], vtprune.integrations.integrate(model).all_encoder_layers[1]):
        handle = broken.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**inputs)
        handle.remove()
        assert torch.equal(model(**inputs).logits, expected)
    text = family.inputs(family.row(6))
    logits = model(**text).logits
    vtprune.remove(model)
    assert torch.equal(logits, model(**text).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "llava_onevision"])
def test_a_prompt_without_text_is_refused_where_all_visual_tokens_leave(name):
    family = FAMILIES[name]
    model = family.model()
    bare, usual = family.row(IMAGE), family.row(3, IMAGE, 2)
    vtprune.apply(model, "exit", layer=2)
    expected = model(**family.inputs(usual)).logits
    for rows in ([bare], [usual, bare]):
        with pytest.raises(ValueError, match="nothing is left of a prompt without text"):
            model(**family.inputs(*rows))
    assert torch.equal(model(**family.inputs(usual)).logits, expected)
    vtprune.apply(model, "fastv", keep=0.5, layer=2)
    assert torch.isfinite(model(**family.inputs(bare)).logits).all()


@torch.no_grad()
def test_cache_can_be_cropped_down_to_the_prompt(family, model, inputs):
    vtprune.apply(model, "fastv", keep=0.5)
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    cache = out.past_key_values
    follow = model(input_ids=out.sequences[:, -1:], past_key_values=copy.deepcopy(cache)).logits
    model(input_ids=family.row(3).ids[None], past_key_values=cache)
    cache.crop(-3)
    torch.testing.assert_close(model(input_ids=out.sequences[:, -1:], past_key_values=cache).logits, follow, **CLOSE)
    with pytest.raises(ValueError, match="visual tokens were removed"):
        cache.crop(-(cache.get_seq_length() - 5))


@torch.no_grad()
@pytest.mark.parametrize("helper", ["prompt lookup", "assistant"])
def test_assisted_decoding_gives_the_same_answer(family, model, inputs, helper):
    assistant = {"assistant_model": family.model(seed=1)} if helper == "assistant" else {"prompt_lookup_num_tokens": 2}
    settings = {"max_new_tokens": 8, "do_sample": False}
    try:
        untouched = model.generate(**inputs, **settings, **assistant)
    except Exception as error:
        pytest.skip(f"transformers cannot do this with the untouched model: {type(error).__name__}")
    if not torch.equal(untouched, model.generate(**inputs, **settings)):
        pytest.skip("transformers gives another answer with the untouched model as well")
    vtprune.apply(model, "divprune", keep=0.5)
    expected = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, **assistant), expected)
    # Drafted tokens come with the prompt, so that a method that asks the last token hears another one's opinion.
    vtprune.apply(model, "fastv", keep=0.5)
    assert model.generate(**inputs, **settings, **assistant).shape == expected.shape


@torch.no_grad()
def test_long_decoding(model, row, inputs):
    vtprune.apply(model, ["divprune:keep=0.5", "fastv:layer=2,keep=0.5"])
    out = model.generate(**inputs, max_new_tokens=150, do_sample=False, return_dict_in_generate=True)
    report = vtprune.report(model)
    entered, kept = len(report.pictures[0].entered), len(report.pictures[0].kept)
    held = [layer.physical_length for layer in out.past_key_values.layers]
    assert held == [row.text + entered + 149] * 2 + [row.text + kept + 149] * 3
    assert kept < entered < row.tokens


@torch.no_grad()
@pytest.mark.parametrize("kind", [("llava-clip", "sdpa")], indirect=True)  # compiling takes seconds
def test_compiled_model_gives_the_same_logits(model, inputs):
    """Graph breaks are allowed: hooks run outside the compiled graphs. More in test_inside_layers.py."""
    vtprune.apply(model, ["tome", "fastv:keep=0.5"])
    expected = model(**inputs).logits
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**inputs).logits, expected, **CLOSE)
    torch.compiler.reset()


@over(methods_twice("offloading"))
@torch.no_grad()
def test_weights_offloaded_to_the_cpu(model, method, inputs):
    """Weights that come from elsewhere for each module's call, through accelerate."""
    from accelerate import cpu_offload

    check_offloaded(model, method, inputs, lambda model: cpu_offload(model, execution_device="cpu"))


@torch.no_grad()
def test_weights_offloaded_to_the_disk(model, inputs, tmp_path):
    from accelerate import disk_offload

    on_disk = lambda model: disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))  # noqa: E731
    check_offloaded(model, ("fastv", {"keep": 0.5}), inputs, on_disk)


def check_offloaded(model, method, inputs, offload):
    with vtprune.applied(model, method[0], **method[1]):
        expected = model(**inputs).logits
    offload(model)
    vtprune.apply(model, method[0], **method[1])
    torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
    vtprune.remove(model)
    assert hasattr(model.lm_head, "_hf_hook")


def quantized_copy(model, folder, bits):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    model.save_pretrained(folder)
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config, device_map="cpu")


@torch.no_grad()
@pytest.mark.parametrize("kind", [(name, "sdpa") for name in ("llava-clip", "qwen3_vl", "internvl")], indirect=True)
def test_8_bit_weights(model, inputs, tmp_path):
    """The methods decide and remove on quantized linear layers as on others."""
    quantized = quantized_copy(model, tmp_path, 8)
    expected = quantized(**inputs).logits
    check_quantized(quantized, inputs, expected)


@torch.no_grad()
def test_4_bit_weights(tmp_path):
    """Blocks of 64 weights need a model that is not as tiny as the others."""
    from vtprune.models import load_model

    quantized = quantized_copy(load_model("tiny-llava").model, tmp_path, 4)
    ids = torch.cat((prompt(4), torch.full((256,), 3), prompt(3)))
    inputs = {"input_ids": ids[None], "pixel_values": torch.rand(1, 3, 224, 224)}
    check_quantized(quantized, inputs, quantized(**inputs).logits)


def check_quantized(quantized, inputs, expected):
    for name in ("fastv", "fastervlm"):
        with vtprune.applied(quantized, name, keep=1.0):
            torch.testing.assert_close(quantized(**inputs).logits, expected, **CLOSE)
        with vtprune.applied(quantized, name, keep=0.5):
            assert quantized(**inputs).logits.shape[1] < expected.shape[1]
            assert bool(quantized(**inputs).logits.isfinite().all())


@pytest.mark.parametrize("kind", [("llava-clip", "sdpa"), ("qwen2_5_vl", "sdpa")], indirect=True)
def test_peft_model(model, row, inputs):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    vtprune.apply(wrapped, "fastv", keep=0.5)
    labels = row.ids.masked_fill(row.visual, -100)[None]
    out = wrapped(**inputs, labels=labels)
    kept = vtprune.report(wrapped).visual_tokens_after
    assert out.logits.shape[1] == row.text + kept < len(row.ids)
    out.loss.backward()
    with torch.no_grad():
        merged = wrapped.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, out.logits.detach(), atol=1e-3, rtol=1e-3)


def test_a_copy_with_methods_is_refused(model):
    vtprune.apply(model, "fastv", keep=0.5)
    with pytest.raises(TypeError, match=r"vtprune\.remove"):
        copy.deepcopy(model)
    vtprune.remove(model)
    copy.deepcopy(model)


@torch.no_grad()
def test_qwen2_decoder_in_a_llava():
    model = tiny_llava(decoder="qwen2")
    x = {**batch(prompt(5, 0, 7), prompt(2, 0, 3)), "pixel_values": picture(2)}
    vtprune.apply(model, "fastv", keep=0.5)
    together = model.generate(**x, max_new_tokens=4, do_sample=False)[:, -4:]
    x = {"input_ids": prompt(2, 0, 3)[None], "pixel_values": picture(2)[1:]}
    alone = model.generate(**x, max_new_tokens=4, do_sample=False)
    assert together[1].tolist() == alone[0, -4:].tolist()
