"""The architecture of tiny-qwen2.5-vl: pictures of any size, windows, M-RoPE, a merger, a Qwen2.5-VL decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GenerationConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from vtprune.evals.tiny_internvl import folded_patches, sample_pictures, start_decoder
from vtprune.evals.tiny_llava import BOS_ID, EOS_ID, IMAGE_ID, MAX_LENGTH, PAD_ID, PATCH_SIZE, VOCAB_SIZE
from vtprune.evals.vocabulary import build_tokenizer, chat_template

HEADS, HEAD_DIM, DEPTH = 6, 32, 4
WINDOW = 112
FULL_LAYERS = (1, 3)
"""Layers of the tower that look beyond their window."""

FRAMES_PER_STEP = 2
LEAST_PIXELS, MOST_PIXELS = 112 * 112, 336 * 336
PICTURE_TOKEN, VIDEO_TOKEN, START_TOKEN, END_TOKEN = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
)

_VIDEO_ID, _START_ID, _END_ID = 460, 461, 462
_INNER = 368
_TOWER_THETA = 100.0
# silu(1.702 x) / 1.702 is nearly gelu(x).
_GELU = 1.702
_NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (0, 2), (0, -2), (2, 0), (-2, 0))
_SHARPNESS = 3.2
_CONTENT_SHARE = 0.15


def qwen_config() -> Qwen2_5_VLConfig:
    """The configuration of tiny-qwen2.5-vl: a visual token per 28 x 28 pixels, 4 tower and 6 decoder layers."""
    vision = {
        "depth": DEPTH,
        "hidden_size": HEADS * HEAD_DIM,
        "hidden_act": "silu",
        "intermediate_size": _INNER,
        "num_heads": HEADS,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": 2,
        "temporal_patch_size": FRAMES_PER_STEP,
        # A step of two frames at 24 frames per second, which processors take for granted, is one position.
        "tokens_per_second": 13,
        "window_size": WINDOW,
        "out_hidden_size": HEADS * HEAD_DIM,
        "fullatt_block_indexes": list(FULL_LAYERS),
        "rope_parameters": {"rope_type": "axial", "rope_theta": _TOWER_THETA},
    }
    text = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": 448,
        "num_hidden_layers": 6,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": MAX_LENGTH,
        "rms_norm_eps": 1e-6,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        # Time, height and width take turns, so that each of them has fast and slow rotations of a small head.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [1] * (HEAD_DIM // 2)},
    }
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_ID,
        video_token_id=_VIDEO_ID,
        vision_start_token_id=_START_ID,
        vision_end_token_id=_END_ID,
        tie_word_embeddings=True,
    )
    config.pad_token_id = PAD_ID
    return config


def build_qwen_processor() -> Qwen2_5_VLProcessor:
    """The processor: sides become multiples of 28 pixels, a visual token is 28 x 28 pixels of one or two frames."""
    size = {"shortest_edge": LEAST_PIXELS, "longest_edge": MOST_PIXELS}
    names = {"video_token": VIDEO_TOKEN, "vision_start_token": START_TOKEN, "vision_end_token": END_TOKEN}
    seen = f"{START_TOKEN}{{}}{END_TOKEN}"
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size)),
        tokenizer=build_tokenizer(PICTURE_TOKEN, {"image_token": PICTURE_TOKEN, **names}),
        video_processor=Qwen2VLVideoProcessor(size=dict(size), cap_pixels_per_frame=False),
        chat_template=chat_template(seen.format(PICTURE_TOKEN), seen.format(VIDEO_TOKEN)),
    )


def new_qwen(llava: LlavaForConditionalGeneration, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """A tiny-qwen2.5-vl that starts from a trained tiny-llava.

    The decoder is taken over as it is: for text M-RoPE is RoPE. The tower takes over patches, values and the more
    active units of the MLPs of CLIP's first four layers; layer normalisation becomes RMS normalisation because all that
    is written to the stream is centred, and the gate's partner starts as a constant, which makes a gated MLP an
    ordinary one. CLIP's positions have no counterpart: most heads of the first layers start by looking at one
    neighbouring patch, with a query and a key that do not depend on what is there. The merger is random.

    Args:
        llava: The model to start from.
        seed: Seed of the random weights.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(qwen_config())
        _start_tower(model.model.visual, llava.model.vision_tower)
        start_decoder(model, llava)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, max_new_tokens=16, do_sample=False
    )
    return model.eval()


def tower_frequencies() -> Tensor:
    """Angles per patch of the tower's rotary positions, eight for each axis."""
    half = HEAD_DIM // 2
    return 1.0 / _TOWER_THETA ** (torch.arange(0, half, 2).float() / half)


def _start_tower(tower: Any, clip: Any) -> None:
    patches, _ = folded_patches(clip)
    weight = tower.patch_embed.proj.weight
    weight.copy_((patches / FRAMES_PER_STEP).unsqueeze(2).expand_as(weight))
    for place, (block, old, active) in enumerate(
        zip(tower.blocks, clip.encoder.layers, _activity(clip)[:DEPTH], strict=False)
    ):
        _start_attention(block.attn, old, place)
        _start_mlp(block.mlp, old, active)
    first, last = tower.merger.mlp[0], tower.merger.mlp[2]
    for linear, share in ((first, 1.0), (last, 0.6)):
        nn.init.normal_(linear.weight, std=share * linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)


def _start_attention(attention: Any, old: Any, place: int) -> None:
    norm, width = old.layer_norm1, HEADS * HEAD_DIM
    source = old.self_attn
    attention.qkv.weight.copy_(
        torch.cat([p.weight * norm.weight for p in (source.q_proj, source.k_proj, source.v_proj)])
    )
    nn.init.zeros_(attention.qkv.bias)
    attention.qkv.bias[2 * width :] = source.v_proj.bias + source.v_proj.weight @ norm.bias
    attention.proj.weight.copy_(_centred(source.out_proj.weight))
    attention.proj.bias.copy_(_centred(source.out_proj.bias))
    frequencies = tower_frequencies()
    for head in range(HEADS if place < 2 else HEADS // 2):
        across, down = _NEIGHBOURS[(place * HEADS + head) % len(_NEIGHBOURS)]
        angle = torch.cat([down * frequencies, across * frequencies])
        query = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        key = slice(width + query.start, width + query.stop)
        attention.qkv.weight[query] *= _CONTENT_SHARE
        attention.qkv.weight[key] *= _CONTENT_SHARE
        attention.qkv.bias[query] = _SHARPNESS * torch.cat([torch.ones_like(angle), torch.zeros_like(angle)])
        attention.qkv.bias[key] = _SHARPNESS * torch.cat([angle.cos(), -angle.sin()])


def _start_mlp(mlp: Any, old: Any, active: Tensor) -> None:
    norm, fc1, fc2 = old.layer_norm2, old.mlp.fc1, old.mlp.fc2
    kept = (active * fc2.weight.norm(dim=0)).topk(_INNER).indices.sort().values
    mlp.gate_proj.weight.copy_((fc1.weight * norm.weight)[kept] * _GELU)
    mlp.gate_proj.bias.copy_((fc1.bias + fc1.weight @ norm.bias)[kept] * _GELU)
    nn.init.normal_(mlp.up_proj.weight, std=0.1 * mlp.up_proj.in_features**-0.5)
    nn.init.constant_(mlp.up_proj.bias, 1 / _GELU)
    mlp.down_proj.weight.copy_(_centred(fc2.weight)[:, kept])
    mlp.down_proj.bias.copy_(_centred(fc2.bias))


def _centred(weight: Tensor) -> Tensor:
    return weight - weight.mean(0)


def _activity(clip: Any) -> list[Tensor]:
    """How much the units of each of CLIP's MLPs vary over some pictures."""
    found: list[Tensor] = []

    def note(module: nn.Module, arguments: Any, output: Tensor) -> None:
        found.append(functional.gelu(output).std((0, 1)))

    hooks = [layer.mlp.fc1.register_forward_hook(note) for layer in clip.encoder.layers]
    clip(sample_pictures())
    for hook in hooks:
        hook.remove()
    return found
