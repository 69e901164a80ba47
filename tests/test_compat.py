"""Watches over the names of transformers that vtprune relies on, so that a rename fails here with a clear message."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from transformers import DynamicCache

import vtprune
from tests.tiny import tiny_llava
from vtprune import compat

WHERE = f"transformers {transformers.__version__} changed this; mend vtprune/compat.py or the integration"


def test_decoder_layers_are_called_with_the_arguments_that_the_engine_changes():
    seen = {}
    model = tiny_llava()
    layer = model.model.language_model.layers[1]
    layer.register_forward_pre_hook(lambda m, a, k: seen.update(k, positional=len(a)), with_kwargs=True)
    layer.self_attn.register_forward_pre_hook(lambda m, a, k: seen.update(attention=set(k)), with_kwargs=True)
    model(input_ids=torch.tensor([[3, 4, 5]]))
    assert seen["positional"] == 1, WHERE
    assert {"attention_mask", "position_embeddings", "position_ids", "past_key_values"} <= set(seen), WHERE
    assert {"hidden_states", "position_embeddings"} <= seen["attention"], WHERE


def test_what_a_caller_collects_can_be_put_aside():
    model = tiny_llava()
    layer = model.model.language_model.layers[1]

    def run_again(module, args, kwargs):
        with compat.nothing_collected():
            module.forward(*args, **{**kwargs, "past_key_values": None})
            model.model.language_model.layers[0](*args, **{**kwargs, "past_key_values": None})

    layer.register_forward_pre_hook(run_again, with_kwargs=True)
    out = model(input_ids=torch.tensor([[3, 4, 5]]), output_hidden_states=True)
    assert len(out.hidden_states) == 6, WHERE


def test_mask_builder_takes_what_we_give_it():
    parameters = inspect.signature(compat.create_causal_mask).parameters
    assert {"config", "inputs_embeds", "attention_mask", "past_key_values", "position_ids"} <= set(parameters), WHERE


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_mask(attention, padded, past):
    model = tiny_llava(attention=attention)
    config = model.model.language_model.config
    hidden = torch.zeros(2, 4, 48)
    valid = torch.ones(2, past + 4, dtype=torch.bool)
    valid[0, :2] = not padded
    mask = compat.build_mask(config, hidden, valid if padded else None, past)
    if mask is None:  # sdpa masks by its own causal flag
        assert attention == "sdpa"
        assert past == 0
        assert not padded
        return
    allowed = mask if mask.dtype == torch.bool else mask == 0
    causal = torch.arange(past + 4)[None] <= torch.arange(4)[:, None] + past
    expected = (causal & valid[:, None])[:, None]
    expected = expected.expand(2, 1, 4, past + 4) if padded else causal.expand(allowed.shape)
    assert torch.equal(allowed.expand(expected.shape), expected), WHERE


def test_rotation_is_the_models_own():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    cos, sin = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    theirs = apply_rotary_pos_emb(q, k, cos, sin)
    torch.testing.assert_close(compat.rotate(q, cos, sin), theirs[0])
    torch.testing.assert_close(compat.rotate(k, cos, sin), theirs[1])


def test_cache_layers_can_be_replaced():
    cache = DynamicCache()
    assert hasattr(cache, "layers"), WHERE
    assert type(DynamicCache(config=tiny_llava().config.text_config).layers[0]) is compat.DynamicLayer, WHERE


def test_integration_finds_every_module():
    from vtprune.integrations import integrate

    for tower in ("clip", "siglip"):
        found = integrate(tiny_llava(tower))
        assert len(found.encoder_blocks) == (3 if tower == "clip" else 4), WHERE
        assert len(found.decoder_layers) == 5, WHERE
        assert found.patches_per_picture == 36
        assert found.has_cls == (tower == "clip")


def test_sliding_windows_are_refused():
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = MistralConfig(**small, num_key_value_heads=1, vocab_size=8, sliding_window=4)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**small, image_size=8, patch_size=4), text_config=text)
    with pytest.raises(ValueError, match="sliding"):
        vtprune.apply(LlavaForConditionalGeneration(config), "divprune", keep=0.5)
    config.text_config.sliding_window = None
    vtprune.apply(LlavaForConditionalGeneration(config), "divprune", keep=0.5)


def test_transformers_imports_at_the_root_of_the_repository():
    """There it finds our folder `kernels` when it looks for the package of that name."""
    import subprocess
    import sys
    from pathlib import Path

    program = "from transformers import LlavaForConditionalGeneration; import vtprune; vtprune.kernels.compact_index"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
