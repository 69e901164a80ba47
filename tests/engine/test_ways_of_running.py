"""Ways of running a model: threads, precisions, training, compilation, other libraries' hooks, other caches."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from transformers import StaticCache

import vtprune
from tests.tiny import ENCODES_FIRST, TOKENS, batch, picture, prompt, tiny_llava

CLOSE = dict(atol=1e-4, rtol=1e-4)


@pytest.fixture
def model():
    return tiny_llava()


@pytest.fixture
def inputs():
    return {"input_ids": prompt(5, 0, 7)[None], "pixel_values": picture()}


def test_two_threads_share_one_model(pruned):
    """Each thread gets its own answer and its own report, however the calls interleave."""
    requests = [
        {**batch(prompt(5, 0, 7, seed=1)), "pixel_values": picture(1, seed=1)},
        {**batch(prompt(2, 0, 4, 0, 3, seed=2), prompt(3, seed=3)), "pixel_values": picture(2, seed=2)},
    ]
    with torch.no_grad():
        expected = [pruned.generate(**x, max_new_tokens=6, do_sample=False) for x in requests]
    before = [TOKENS, 2 * TOKENS]
    errors: list[str] = []
    start = threading.Barrier(2)

    def work(i: int) -> None:
        start.wait()
        with torch.no_grad():
            for _ in range(3):
                if not torch.equal(pruned.generate(**requests[i], max_new_tokens=6, do_sample=False), expected[i]):
                    errors.append(f"thread {i} got another answer")
        if vtprune.report(pruned).visual_tokens_before != before[i]:
            errors.append(f"thread {i} got another report")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@torch.no_grad()
def test_bf16(method, inputs):
    """bf16 decides nearly as float32 does, and never leaves its own precision."""
    model = tiny_llava().to(torch.bfloat16)
    vtprune.apply(model, method[0], **method[1])
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    out = model(**inputs)
    assert out.logits.dtype == torch.bfloat16
    assert bool(out.logits.isfinite().all())
    assert out.past_key_values.layers[0].keys.dtype == torch.bfloat16
    assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape == (1, inputs["input_ids"].shape[1] + 4)


def test_gradients_flow(method, inputs):
    model = tiny_llava().train()
    vtprune.apply(model, method[0], **method[1])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 1, -100)
    model(**inputs, labels=labels).loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    used = [n for n, _ in model.named_parameters() if "k_proj.bias" not in n and "post_layernorm" not in n]
    used = [n for n in used if ".encoder.layers.3." not in n]  # the feature layer is the last but one
    assert [n for n in used if n not in reached] == []
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_training_step_equals_finite_difference(inputs):
    """The gradient of a pruned model is the gradient of what it computes."""
    model = tiny_llava().double()
    inputs["pixel_values"] = inputs["pixel_values"].double()
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


@pytest.mark.parametrize("name", ["fastv", "tome"])
def test_gradient_checkpointing_is_refused_between_layers(model, inputs, name):
    model.gradient_checkpointing_enable()
    model.train()
    vtprune.apply(model, name, keep=0.5)
    with pytest.raises(ValueError, match=f"{name}.*gradient checkpointing"):
        model(**inputs)
    vtprune.apply(model, "divprune", keep=0.5)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 1, -100)
    model(**inputs, labels=labels).loss.backward()


@torch.no_grad()
@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_static_cache_is_refused_by_name(model, inputs, name):
    vtprune.apply(model, name, keep=0.5)
    with pytest.raises(ValueError, match=f"{name}.*(StaticCache|static)"):
        model.generate(**inputs, max_new_tokens=3, cache_implementation="static")
    with pytest.raises(ValueError, match=f"{name}.*StaticCache"):
        model(**inputs, past_key_values=StaticCache(config=model.config.text_config, max_cache_len=64))


@torch.no_grad()
@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers does not hand encoded pictures over")
def test_prefill_in_chunks_is_refused(model, inputs):
    vtprune.apply(model, "divprune", keep=0.5)
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(**inputs, max_new_tokens=3, prefill_chunk_size=16)


@torch.no_grad()
@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers does not hand encoded pictures over")
def test_features_encoded_before_apply_are_refused(model, inputs):
    features = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
    vtprune.apply(model, "divprune", keep=0.5)
    with pytest.raises(ValueError, match=r"encode pictures after vtprune\.apply"):
        model(input_ids=inputs["input_ids"], mm_encoder_outputs={"image": features})
    features = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
    logits = model(input_ids=inputs["input_ids"], mm_encoder_outputs={"image": features}).logits
    torch.testing.assert_close(logits, model(**inputs).logits, **CLOSE)


@torch.no_grad()
def test_placeholders_and_pictures_must_match(model, inputs):
    vtprune.apply(model, "divprune", keep=0.5)
    with pytest.raises(ValueError, match=r"(placeholder|do not match)"):
        model(input_ids=prompt(5, 0, 3, 0)[None], pixel_values=inputs["pixel_values"])
    assert model(**inputs).logits.shape[1] == 12 + TOKENS // 2, "a failed call leaves nothing behind"


@torch.no_grad()
def test_a_failed_call_leaves_the_model_usable(model, inputs):
    vtprune.apply(model, "fastv", keep=0.5)
    expected = model(**inputs).logits
    handle = model.model.language_model.layers[3].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**inputs)
    handle.remove()
    assert torch.equal(model(**inputs).logits, expected)
    text = prompt(6)[None]
    logits = model(input_ids=text).logits
    vtprune.remove(model)
    assert torch.equal(logits, model(input_ids=text).logits)


@torch.no_grad()
def test_cache_can_be_cropped_down_to_the_prompt(model, inputs):
    vtprune.apply(model, "fastv", keep=0.5)
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    cache = out.past_key_values
    length = inputs["input_ids"].shape[1]
    follow = model(input_ids=out.sequences[:, -1:], past_key_values=copy.deepcopy(cache)).logits
    model(input_ids=prompt(3)[None], past_key_values=cache)
    cache.crop(-3)
    torch.testing.assert_close(model(input_ids=out.sequences[:, -1:], past_key_values=cache).logits, follow, **CLOSE)
    with pytest.raises(ValueError, match="visual tokens were removed"):
        cache.crop(-(cache.get_seq_length() - length + 10))


@torch.no_grad()
def test_assisted_decoding_gives_the_same_answer(model, inputs):
    vtprune.apply(model, "fastv", keep=0.5)
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    settings = {"max_new_tokens": 8, "do_sample": False, "prompt_lookup_num_tokens": 2}
    assert torch.equal(model.generate(**inputs, **settings), expected)


@torch.no_grad()
def test_long_decoding(model, inputs):
    vtprune.apply(model, ["divprune:keep=0.5", "fastv:layer=2,keep=0.5"])
    out = model.generate(**inputs, max_new_tokens=150, do_sample=False, return_dict_in_generate=True)
    held = [layer.physical_length for layer in out.past_key_values.layers]
    assert held == [12 + 18 + 149] * 2 + [12 + 9 + 149] * 3


@torch.no_grad()
@pytest.mark.parametrize("name", ["divprune", "fastv", "tome"])
def test_compiled_model_gives_the_same_logits(model, inputs, name):
    """Graph breaks are allowed: hooks run outside the compiled graphs."""
    vtprune.apply(model, name, keep=0.5)
    expected = model(**inputs).logits
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**inputs).logits, expected, **CLOSE)
    torch.compiler.reset()


@torch.no_grad()
def test_accelerate_hooks_keep_working(model, inputs):
    from accelerate import cpu_offload

    vtprune.apply(model, "fastv", keep=0.5)
    expected = model(**inputs).logits
    vtprune.remove(model)
    offloaded = cpu_offload(copy.deepcopy(model), execution_device="cpu")
    vtprune.apply(offloaded, "fastv", keep=0.5)
    torch.testing.assert_close(offloaded(**inputs).logits, expected, **CLOSE)
    vtprune.remove(offloaded)
    assert hasattr(offloaded.lm_head, "_hf_hook")


def test_peft_model(model, inputs):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    vtprune.apply(wrapped, "fastv", keep=0.5)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 1, -100)
    out = wrapped(**inputs, labels=labels)
    assert out.logits.shape[1] == 12 + TOKENS // 2
    out.loss.backward()
    assert vtprune.report(wrapped).visual_tokens_after == TOKENS // 2
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
