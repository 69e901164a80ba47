"""A shrunken tiny-llava: same tokens, patches and prompt, but one layer each and width 32."""

from __future__ import annotations

import torch
from transformers import LlavaForConditionalGeneration

from vtprune.evals.tiny_llava import tiny_config


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
