"""Tiny random models that go with the processors of `tests.processors`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)

from tests.processors import SIDE, VIDEO_PROCESSORS

_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


def _text(processor: Any) -> dict[str, Any]:
    ids = processor.tokenizer.convert_tokens_to_ids
    return {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": ids("<s>"),
        "eos_token_id": ids("</s>"),
        "pad_token_id": ids("<pad>"),
    }


def _qwen(kind: Any, config: Any, **vision: Any) -> Callable[[Any], Any]:
    def build(processor: Any) -> Any:
        ids = processor.tokenizer.convert_tokens_to_ids
        marks = {f"vision_{end}_token_id": ids(f"<|vision_{end}|>") for end in ("start", "end")}
        text = {**_text(processor), "rope_parameters": _MROPE, "head_dim": 8}
        tokens = {"image_token_id": processor.image_token_id, "video_token_id": processor.video_token_id}
        return kind(config(text_config=text, vision_config={"depth": 2, "num_heads": 2, **vision}, **tokens, **marks))

    return build


def _internvl(processor: Any) -> Any:
    vision = InternVLVisionConfig(**_VISION, image_size=[SIDE, SIDE], patch_size=[14, 14])
    text = Qwen2Config(**_text(processor))
    token = processor.image_token_id
    return InternVLForConditionalGeneration(
        InternVLConfig(vision_config=vision, text_config=text, image_token_id=token, downsample_ratio=0.5)
    )


def _llava_onevision(processor: Any) -> Any:
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_VISION, image_size=SIDE, patch_size=14, vision_use_head=False),
        text_config=Qwen2Config(**_text(processor)),
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        image_grid_pinpoints=processor.image_processor.image_grid_pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return LlavaOnevisionForConditionalGeneration(config)


_WIDE = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}

VIDEO_MODELS: dict[str, Callable[[Any], Any]] = {
    "qwen2_vl": _qwen(Qwen2VLForConditionalGeneration, Qwen2VLConfig, embed_dim=32, hidden_size=32, mlp_ratio=2),
    "qwen2_5_vl": _qwen(
        Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, **_WIDE, window_size=56, fullatt_block_indexes=[1]
    ),
    "qwen3_vl": _qwen(
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig,
        **_WIDE,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0],
    ),
    "internvl": _internvl,
    "llava_onevision": _llava_onevision,
}


def save_model(family: str, folder: Path) -> Path:
    """Save the random model of a family with its processor; the folder is given back."""
    processor = VIDEO_PROCESSORS[family]()
    torch.manual_seed(0)
    VIDEO_MODELS[family](processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
