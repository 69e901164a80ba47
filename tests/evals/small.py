"""Shrunken tiny models: same tokens, patches and prompt, but few layers and width 32."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    InternVLForConditionalGeneration,
    LlavaForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
)

from vtprune.evals.tiny_internvl import internvl_config
from vtprune.evals.tiny_llava import tiny_config
from vtprune.evals.tiny_qwen2_5_vl import qwen_config


def small_llava(layers: int = 1) -> LlavaForConditionalGeneration:
    """A model with random float32 weights that make it look at more than the mean of everything."""
    config = tiny_config()
    for part in (config.vision_config, config.text_config):
        part.hidden_size = 32
        part.intermediate_size = 48
        part.num_hidden_layers = layers
        part.num_attention_heads = 2
    config.text_config.num_key_value_heads = 2
    config.text_config.head_dim = 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def small_family(name: str) -> Any:
    """A shrunken tiny-internvl or tiny-qwen2.5-vl: the same tokens, tiles and windows, two layers each, width 32."""
    config: Any = internvl_config() if name == "tiny-internvl" else qwen_config()
    text, vision = config.text_config, config.vision_config
    for part in (text, vision):
        part.hidden_size, part.intermediate_size = 32, 48
        part.num_attention_heads = 1
    vision.num_hidden_layers = 2
    text.num_hidden_layers, text.num_key_value_heads = 2, 1
    text.layer_types = ["full_attention"] * 2
    if name == "tiny-internvl":
        kind: Any = InternVLForConditionalGeneration
    else:
        kind, vision.out_hidden_size = Qwen2_5_VLForConditionalGeneration, 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()
