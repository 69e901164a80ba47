"""LLaVA-OneVision: SigLIP so400m at 384 pixels in up to 36 tiles, pooled video frames, Qwen2-7B.

Numbers: config.json and preprocessor_config.json of llava-hf/llava-onevision-qwen2-7b-ov-hf, whose vocabulary is that
of Qwen2-7B and two more tokens, rounded up to a multiple of 64.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from vtprune.published import qwen_tokens
from vtprune.published.base import Published
from vtprune.published.templates import chatml
from vtprune.published.tokens import Vocabulary

_SIDES = range(384, 2305, 384)
PINPOINTS = [[height, width] for height in _SIDES for width in _SIDES]  # in pixels
_PICTURE: dict[str, Any] = dict(
    size={"height": 384, "width": 384}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
)


def _siglip(small: bool) -> SiglipVisionConfig:
    # 26 layers: the last one of the published 27 is dropped, so that the features are those of layer -1.
    widths: dict[str, Any] = dict(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16
    )
    if small:
        widths = dict(hidden_size=72, intermediate_size=272, num_hidden_layers=6, num_attention_heads=4)
    return SiglipVisionConfig(**widths, image_size=384, patch_size=14, vision_use_head=False)


def _config(vocabulary: Vocabulary, small: bool) -> LlavaOnevisionConfig:
    text = Qwen2Config(
        **qwen_tokens.qwen2_7b(vocabulary, small),
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    return LlavaOnevisionConfig(
        vision_config=_siglip(small),
        text_config=text,
        image_token_index=vocabulary["<image>"],
        video_token_index=vocabulary["<video>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=PINPOINTS,
    )


def _processor(tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionProcessor:
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(**_PICTURE, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        LlavaOnevisionVideoProcessor(**_PICTURE),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=chatml("<image>\n", "<video>\n"),
    )


LLAVA_ONEVISION = Published(
    name="llava-onevision-qwen2-7b",
    checkpoint="llava-hf/llava-onevision-qwen2-7b-ov-hf",
    parameters=8_030_807_584,  # published as 8.03 B
    vocabulary=qwen_tokens.vocabulary(152128, qwen_tokens.CHAT | {"<image>": 151646, "<video>": 151647}),
    make_config=_config,
    make_processor=_processor,
    aliases=("llava-onevision-qwen2-7b-ov",),
)
