"""The architecture of tiny-llava: a small LLaVA-1.5 (CLIP vision tower, projector, Llama decoder), random weights."""

from __future__ import annotations

import math

import torch
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

VOCAB_SIZE = 576
PAD_ID, BOS_ID, EOS_ID, IMAGE_ID = 0, 1, 2, 3
IMAGE_SIZE, PATCH_SIZE = 224, 14
MAX_LENGTH = 2048
GRID = IMAGE_SIZE // PATCH_SIZE
VISUAL_TOKENS = GRID * GRID

_HEAD_DIM = 32
_NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (0, 2), (0, -2), (2, 0), (-2, 0))


def tiny_config() -> LlavaConfig:
    """The configuration of tiny-llava: 256 visual tokens of 224 px, 5 tower layers, 6 decoder layers, width 192."""
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=5,
        num_attention_heads=6,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="gelu",
        projection_dim=192,
    )
    text = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=_HEAD_DIM,
        max_position_embeddings=MAX_LENGTH,
        # Slow rotations leave most of a small head to the content of the tokens.
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=VISUAL_TOKENS,
        tie_word_embeddings=True,
    )
    config.pad_token_id = PAD_ID
    return config


def new_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """A tiny-llava with freshly drawn float32 weights.

    The linear layers start at a scale that suits their width. The tower's positions start as two-dimensional waves, and
    most heads of its first layers start by looking at one neighbouring patch each; in the decoder the keys start equal
    to the queries, so that tokens first look at tokens of similar content. All of this is only a starting point: every
    weight is trained.

    Args:
        seed: Seed of the random weights.
    """
    devices: list[int] = []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(tiny_config())
        with torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
                    depth = 2 * (6 if "language_model" in name else 5)
                    residual = name.endswith(("out_proj", "o_proj", "fc2", "down_proj"))
                    std = module.in_features**-0.5 * (depth**-0.5 if residual else 1.0)
                    torch.nn.init.normal_(module.weight, std=std)
                    if module.bias is not None:
                        torch.nn.init.zeros_(module.bias)
            _start_tower(model)
            _start_decoder(model)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, max_new_tokens=16, do_sample=False
    )
    return model.eval()


def _start_tower(model: LlavaForConditionalGeneration) -> None:
    tower = model.model.vision_tower
    half = _HEAD_DIM // 4
    frequencies = math.pi * (torch.arange(half) + 0.5) / (2 * half)
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    waves = []
    for axis in (x.flatten(), y.flatten()):
        angle = axis[:, None] * frequencies
        waves += [angle.cos(), angle.sin()]
    position = tower.embeddings.position_embedding.weight
    position.normal_(std=0.02)
    position[:, :_HEAD_DIM] = 0.0
    position[1:, :_HEAD_DIM] = torch.cat(waves, dim=1) * 0.7
    patches = tower.embeddings.patch_embedding.weight
    patches.normal_(std=0.02)
    patches[:_HEAD_DIM] *= 0.1
    for number, layer in enumerate(tower.encoder.layers[:4]):
        attention = layer.self_attn
        for head in range(6 if number < 2 else 3):
            dx, dy = _NEIGHBOURS[(number * 6 + head) % len(_NEIGHBOURS)]
            turn = torch.zeros(_HEAD_DIM, _HEAD_DIM)
            for block, step in enumerate((dx, dy)):
                for f in range(half):
                    c, s = block * 2 * half + f, block * 2 * half + half + f
                    cos, sin = math.cos(step * frequencies[f]), math.sin(step * frequencies[f])
                    turn[c, c], turn[c, s], turn[s, c], turn[s, s] = cos, -sin, sin, cos
            rows = slice(head * _HEAD_DIM, (head + 1) * _HEAD_DIM)
            attention.q_proj.weight[rows] *= 0.1
            attention.k_proj.weight[rows] *= 0.1
            attention.q_proj.weight[rows, :_HEAD_DIM] = 1.5 * turn
            attention.k_proj.weight[rows, :_HEAD_DIM] = 1.5 * torch.eye(_HEAD_DIM)


def _start_decoder(model: LlavaForConditionalGeneration) -> None:
    decoder = model.model.language_model
    decoder.embed_tokens.weight.normal_(std=192**-0.5)
    for layer in decoder.layers:
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
