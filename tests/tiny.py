"""Tiny random models, built in the test: real transformers classes, a few thousand parameters, float32, no files."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    Qwen2Config,
    SiglipVisionConfig,
)

# Whether generate encodes pictures before the forward call (transformers 5.23 does, 5.17 does not).
ENCODES_FIRST = "mm_encoder_outputs" in inspect.signature(LlavaModel.forward).parameters
# Older transformers mixes up the pictures of a row that has several when it repeats them, with or without vtprune.
BEAMS = 3 if ENCODES_FIRST else 1
IMAGE = 1  # token id of the image placeholder
PAD = 0
VOCABULARY = 96
SIDE = 6  # patches per side
TOKENS = SIDE * SIDE
PIXELS = SIDE * 8


def tiny_llava(tower: str = "clip", attention: str = "sdpa", decoder: str = "llama", seed: int = 0, **config):
    """A LLaVA with a CLIP ([CLS], layer -2) or SigLIP (no [CLS], layer -1) tower and 5 decoder layers with GQA."""
    torch.manual_seed(seed)
    shared = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
    shared |= dict(image_size=PIXELS, patch_size=8)
    vision = CLIPVisionConfig(**shared) if tower == "clip" else SiglipVisionConfig(**shared, vision_use_head=False)
    text = (LlamaConfig if decoder == "llama" else Qwen2Config)(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=2,
        eos_token_id=None,
        pad_token_id=PAD,
        initializer_range=0.3,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=IMAGE,
            vision_feature_layer=-2 if tower == "clip" else -1,
            vision_feature_select_strategy="default" if tower == "clip" else "full",
            **config,
        )
    )
    # Random weights of the usual size make attention nearly uniform, so that every selection looks alike.
    for name, parameter in model.named_parameters():
        if "vision_tower" in name and parameter.ndim == 2 and "position" not in name:
            torch.nn.init.normal_(parameter, std=0.25)
        elif "multi_modal_projector" in name and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.suppress_tokens = [IMAGE]
    return model.eval()


def picture(count: int = 1, seed: int = 0) -> Tensor:
    """(count, 3, PIXELS, PIXELS) smooth random pictures."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, PIXELS, mode="bilinear") + 0.1 * torch.randn(
        count, 3, PIXELS, PIXELS, generator=generator
    )


def prompt(*parts: int, seed: int = 0) -> Tensor:
    """Token ids (length,): a positive number stands for that many text tokens, 0 for a picture."""
    generator = torch.Generator().manual_seed(seed)
    pieces = [
        torch.randint(3, VOCABULARY, (n,), generator=generator) if n else torch.full((TOKENS,), IMAGE) for n in parts
    ]
    return torch.cat(pieces)


def batch(*rows: Tensor, side: str = "left") -> dict[str, Tensor]:
    """Padded input_ids and attention_mask, (rows, longest)."""
    longest = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        pad = torch.full((longest - len(row),), PAD)
        ones, zeros = torch.ones(len(row), dtype=torch.long), torch.zeros(len(pad), dtype=torch.long)
        ids.append(torch.cat((pad, row) if side == "left" else (row, pad)))
        mask.append(torch.cat((zeros, ones) if side == "left" else (ones, zeros)))
    return {"input_ids": torch.stack(ids), "attention_mask": torch.stack(mask)}
