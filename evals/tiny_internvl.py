"""The architecture of tiny-internvl: tiles of 112 px, a small InternVL tower, pixel shuffle, a Qwen2 decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
)

from vtprune.evals.scenes import draw_scene, make_scene
from vtprune.evals.student import normalised
from vtprune.evals.tiny_llava import BOS_ID, EOS_ID, GRID, IMAGE_ID, MAX_LENGTH, PAD_ID, PATCH_SIZE, VOCAB_SIZE
from vtprune.evals.vocabulary import build_tokenizer, chat_template

TILE = 112
TILE_GRID = TILE // PATCH_SIZE
TOKENS_PER_TILE = (TILE_GRID // 2) ** 2
MOST_TILES = 4
"""Tiles that a picture is cut into at most; a thumbnail of the whole comes on top."""

PICTURE_TOKEN, START_TOKEN, END_TOKEN, VIDEO_TOKEN = "<IMG_CONTEXT>", "<img>", "</img>", "<video>"

_SAMPLE = 8


def internvl_config() -> InternVLConfig:
    """The configuration of tiny-internvl: 16 visual tokens per tile, 5 tower layers, 6 decoder layers, width 192."""
    vision = InternVLVisionConfig(
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=5,
        num_attention_heads=6,
        image_size=TILE,
        patch_size=PATCH_SIZE,
        attention_bias=True,
        layer_norm_eps=1e-5,
        layer_scale_init_value=1.0,
    )
    text = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_ID,
        image_seq_length=TOKENS_PER_TILE,
        tie_word_embeddings=True,
    )
    config.pad_token_id = PAD_ID
    return config


def build_internvl_processor() -> InternVLProcessor:
    """The processor: a picture becomes up to four tiles and a thumbnail, a frame of a video one tile."""
    size = {"height": TILE, "width": TILE}
    names = {"start_image_token": START_TOKEN, "end_image_token": END_TOKEN, "video_token": VIDEO_TOKEN}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=MOST_TILES),
        tokenizer=build_tokenizer(PICTURE_TOKEN, {"context_image_token": PICTURE_TOKEN, **names}),
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=TOKENS_PER_TILE,
        chat_template=chat_template(PICTURE_TOKEN, VIDEO_TOKEN),
    )


def new_internvl(llava: LlavaForConditionalGeneration, seed: int = 0) -> InternVLForConditionalGeneration:
    """A tiny-internvl that starts from a trained tiny-llava.

    The tower's layers and the decoder are taken over as they are. CLIP's normalisation of the patches before the first
    layer, which InternVL has not, becomes part of the patches' weights, with the mean of its scales; positions are
    those of the middle of the larger grid. The projector starts from the mean over four patches and random weights.

    Args:
        llava: The model to start from.
        seed: Seed of the random weights.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(internvl_config())
        _start_tower(model.model.vision_tower, llava.model.vision_tower)
        start_decoder(model, llava)
        _start_projector(model.model.multi_modal_projector, llava)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, max_new_tokens=16, do_sample=False
    )
    return model.eval()


def start_decoder(model: Any, llava: LlavaForConditionalGeneration) -> None:
    """Take over tiny-llava's decoder, whose layers have no biases; the embeddings of new special tokens are random."""
    decoder = model.model.language_model
    decoder.load_state_dict(llava.model.language_model.state_dict(), strict=False)
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    new = len(build_tokenizer())
    nn.init.normal_(decoder.embed_tokens.weight[new:], std=0.03)
    model.tie_weights()


def sample_pictures() -> Tensor:
    """A few pictures as tiny-llava's tower takes them, to measure how large its states are."""
    pictures = [np.asarray(draw_scene(make_scene(seed))) for seed in range(_SAMPLE)]
    return normalised(torch.from_numpy(np.stack(pictures)))


def folded_patches(tower: Any) -> tuple[Tensor, Tensor]:
    """CLIP's patch weights and the scale of its first normalisation, which is taken to be the same for all patches.

    Returns:
        The weights with the normalisation in them, (width, 3, 14, 14), and what positions are multiplied by.
    """
    embedded = tower.embeddings(sample_pictures())[:, 1:]
    scale = tower.pre_layrnorm.weight / embedded.std(-1, unbiased=False).mean()
    weights = tower.embeddings.patch_embedding.weight
    return (weights - weights.mean(0)) * scale.view(-1, 1, 1, 1), scale


def _start_tower(tower: Any, clip: Any) -> None:
    patches, scale = folded_patches(clip)
    projection = tower.embeddings.patch_embeddings.projection
    projection.weight.copy_(patches)
    nn.init.zeros_(projection.bias)
    position = clip.embeddings.position_embedding.weight
    tower.embeddings.cls_token[0, 0] = clip.pre_layrnorm(clip.embeddings.class_embedding + position[0])
    edge = (GRID - TILE_GRID) // 2
    middle = position[1:].view(GRID, GRID, -1)[edge : edge + TILE_GRID, edge : edge + TILE_GRID].flatten(0, 1)
    tower.embeddings.position_embeddings[0, 0] = 0.0
    centred = middle - middle.mean(1, keepdim=True)
    tower.embeddings.position_embeddings[0, 1:] = centred * scale + clip.pre_layrnorm.bias
    for layer, old in zip(tower.encoder.layer, clip.encoder.layers, strict=True):
        pairs = {
            layer.attention.q_proj: old.self_attn.q_proj,
            layer.attention.k_proj: old.self_attn.k_proj,
            layer.attention.v_proj: old.self_attn.v_proj,
            layer.attention.projection_layer: old.self_attn.out_proj,
            layer.layernorm_before: old.layer_norm1,
            layer.layernorm_after: old.layer_norm2,
            layer.mlp.fc1: old.mlp.fc1,
            layer.mlp.fc2: old.mlp.fc2,
        }
        for module, source in pairs.items():
            module.load_state_dict(source.state_dict())


def _start_projector(projector: Any, llava: LlavaForConditionalGeneration) -> None:
    old = llava.model.multi_modal_projector
    size = llava.model.vision_tower(sample_pictures()).last_hidden_state[:, 1:].std(-1).mean()
    nn.init.normal_(projector.linear_1.weight, std=0.7 * projector.linear_1.in_features**-0.5)
    projector.linear_1.weight += (0.3 * size * old.linear_1.weight).repeat(1, 4)
    projector.linear_1.bias.copy_(old.linear_1.bias)
    projector.linear_2.load_state_dict(old.linear_2.state_dict())
