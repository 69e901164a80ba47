"""Names, numbers of parameters and token ids of the published architectures; nothing is allocated."""

from __future__ import annotations

import pytest
import torch

from vtprune import published
from vtprune.models import load_model
from vtprune.published import MODELS
from vtprune.published.build import build
from vtprune.published.memory import available_memory

NAMES = list(MODELS)
# In billions, as the model pages of the checkpoints show them.
BILLIONS = {
    "llava-1.5-7b": 7.06,
    "llava-v1.6-mistral-7b": 7.57,
    "llava-onevision-qwen2-7b": 8.03,
    "qwen2-vl-7b": 8.29,
    "qwen2.5-vl-7b": 8.29,
    "qwen3-vl-8b": 8.77,
    "internvl3-8b": 7.94,
}


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters_is_the_published_one(name):
    model = build(name, device="meta")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == MODELS[name].parameters
    assert round(count / 1e9, 2) == BILLIONS[name]
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_tokenizer_config_and_generation_agree_on_ids(name, small):
    config, processor = published.config(name, small), published.processor(name, small)
    text, tokenizer = config.get_text_config(), processor.tokenizer
    assert config.image_token_id == processor.image_token_id == tokenizer.convert_tokens_to_ids(processor.image_token)
    if hasattr(config, "video_token_id"):
        assert config.video_token_id == tokenizer.convert_tokens_to_ids(processor.video_token)
    assert (text.eos_token_id, text.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert max(tokenizer.get_vocab().values()) < text.vocab_size
    sample = f"Grüße, {processor.image_token}!\n"
    ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == sample
    assert ids.count(config.image_token_id) == 1


def test_special_tokens_of_the_full_size_have_their_published_ids():
    ids = {name: published.config(name).image_token_id for name in NAMES}
    assert ids == {
        "llava-1.5-7b": 32000,
        "llava-v1.6-mistral-7b": 32000,
        "llava-onevision-qwen2-7b": 151646,
        "qwen2-vl-7b": 151655,
        "qwen2.5-vl-7b": 151655,
        "qwen3-vl-8b": 151655,
        "internvl3-8b": 151667,
    }
    qwen = published.config("qwen2.5-vl-7b")
    assert (qwen.video_token_id, qwen.vision_start_token_id, qwen.vision_end_token_id) == (151656, 151652, 151653)
    assert published.processor("llava-1.5-7b").tokenizer("a")["input_ids"][0] == 1  # <s> begins every text


def test_sections_of_the_rotary_positions_fill_half_a_head():
    for name in ("qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"):
        for small in (False, True):
            text = published.config(name, small).get_text_config()
            width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
            assert 2 * sum(text.rope_parameters["mrope_section"]) == width


@pytest.mark.parametrize(
    ("name", "found", "small"),
    [
        ("random:qwen2.5-vl-7b@small", "qwen2.5-vl-7b", True),
        ("Random:LLaVA-1.5-7B-hf", "llava-1.5-7b", False),
        ("random:llava-onevision-qwen2-7b-ov-hf@SMALL", "llava-onevision-qwen2-7b", True),
        ("random:Qwen2-VL-7B-Instruct", "qwen2-vl-7b", False),
    ],
)
def test_names_are_understood(name, found, small):
    model, size = published.parse(name)
    assert (model.name, size) == (found, small)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("random:qwen2.5-vl@small", "Did you mean 'random:qwen2.5-vl-7b'"),
        ("random:gemma", "Published architectures: llava-1.5-7b, "),
        ("random:qwen2-vl-7b@tiny", "there is @small"),
        ("random:", "unknown architecture ''"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(name, said):
    with pytest.raises(ValueError, match="unknown") as refused:
        load_model(name, device="cpu")
    assert said in str(refused.value)


def test_too_little_memory_is_said_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr("vtprune.published.build.available_memory", lambda device: 10 * 2**30)
    with pytest.raises(ValueError, match=r"need 13\.2 GiB, and cpu has 10\.0 GiB free; 'random:llava-1\.5-7b@small'"):
        load_model("random:llava-1.5-7b", device="cpu")
    with pytest.raises(ValueError, match=r"need 26\.3 GiB"):
        load_model("random:llava-1.5-7b", device="cpu", dtype="float32")


def test_available_memory():
    amount = available_memory(torch.device("cpu"))
    assert amount is None or 2**20 < amount < 2**50
    assert available_memory(torch.device("meta")) is None


def test_loading_honours_dtype_and_attention_and_repeats_itself():
    state = torch.random.get_rng_state()
    loaded = load_model("random:llava-1.5-7b@small", device="cpu", dtype="bfloat16", attention="eager")
    again = load_model("random:llava-1.5-7b@small", device="cpu", dtype="bfloat16")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loaded.name == "random:llava-1.5-7b@small"
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.model.config.text_config._attn_implementation == "eager"
    assert again.model.config.text_config._attn_implementation == "sdpa"
    assert not loaded.model.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), again.model.parameters(), strict=True))
    with pytest.raises(ValueError, match="nonsense"):
        load_model("random:llava-1.5-7b@small", device="cpu", attention="nonsense")
