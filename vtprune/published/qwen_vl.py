"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures at their own resolution, M-RoPE.

Numbers: config.json and preprocessor_config.json of Qwen/Qwen2-VL-7B-Instruct, Qwen/Qwen2.5-VL-7B-Instruct and
Qwen/Qwen3-VL-8B-Instruct.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from vtprune.published import qwen_tokens
from vtprune.published.base import Published
from vtprune.published.templates import chatml
from vtprune.published.tokens import Vocabulary

_IMAGE, _VIDEO = "<|image_pad|>", "<|video_pad|>"
_WRAPPED: dict[str, str] = {
    "image": f"<|vision_start|>{_IMAGE}<|vision_end|>",
    "video": f"<|vision_start|>{_VIDEO}<|vision_end|>",
}
_PATCHES: dict[str, Any] = dict(patch_size=14, temporal_patch_size=2, merge_size=2)
_PATCHES_3 = _PATCHES | dict(patch_size=16)
_HALF: dict[str, Any] = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])


def _shared(vocabulary: Vocabulary) -> dict[str, Any]:
    return dict(
        image_token_id=vocabulary[_IMAGE],
        video_token_id=vocabulary[_VIDEO],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def _text(vocabulary: Vocabulary, small: bool, length: int) -> dict[str, Any]:
    sections = [2, 3, 3] if small else [16, 24, 24]  # frame, row, column; pairs of the head's width
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": sections}
    return qwen_tokens.qwen2_7b(vocabulary, small) | dict(max_position_embeddings=length, rope_parameters=rope)


def _qwen2(vocabulary: Vocabulary, small: bool) -> Qwen2VLConfig:
    widths: dict[str, Any] = dict(depth=32, embed_dim=1280, hidden_size=3584, num_heads=16)
    if small:
        widths = dict(depth=6, embed_dim=80, hidden_size=224, num_heads=4)
    vision = widths | dict(mlp_ratio=4, patch_size=14, temporal_patch_size=2, spatial_merge_size=2)
    return Qwen2VLConfig(
        text_config=_text(vocabulary, small, 32768), vision_config=_ranged(vision, small), **_shared(vocabulary)
    )


def _qwen2_5(vocabulary: Vocabulary, small: bool) -> Qwen2_5_VLConfig:
    widths: dict[str, Any] = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16)
    widths |= dict(out_hidden_size=3584, fullatt_block_indexes=[7, 15, 23, 31])
    if small:
        widths = dict(depth=6, hidden_size=80, intermediate_size=214, num_heads=4)
        widths |= dict(out_hidden_size=224, fullatt_block_indexes=[2, 5])
    vision = widths | dict(
        window_size=112, patch_size=14, temporal_patch_size=2, spatial_merge_size=2, tokens_per_second=2
    )
    return Qwen2_5_VLConfig(
        text_config=_text(vocabulary, small, 128000), vision_config=_ranged(vision, small), **_shared(vocabulary)
    )


def _qwen3(vocabulary: Vocabulary, small: bool) -> Qwen3VLConfig:
    text: dict[str, Any] = dict(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36)
    text |= dict(num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    vision: dict[str, Any] = dict(depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16)
    vision |= dict(out_hidden_size=4096, deepstack_visual_indexes=[8, 16, 24])
    sections = [24, 20, 20]
    if small:
        text = dict(hidden_size=256, intermediate_size=768, num_hidden_layers=6)
        text |= dict(num_attention_heads=8, num_key_value_heads=2, head_dim=32)
        vision = dict(depth=6, hidden_size=72, intermediate_size=272, num_heads=6)
        vision |= dict(out_hidden_size=256, deepstack_visual_indexes=[0, 2, 4])
        sections = [6, 5, 5]
    text |= qwen_tokens.chat_ids(vocabulary) | dict(
        vocab_size=vocabulary.size,
        max_position_embeddings=262144,
        rms_norm_eps=1e-6,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 5000000.0,
            "mrope_section": sections,
            "mrope_interleaved": True,
        },
    )
    vision |= dict(patch_size=16, temporal_patch_size=2, spatial_merge_size=2, num_position_embeddings=2304)
    return Qwen3VLConfig(text_config=_ranged(text, small), vision_config=_ranged(vision, small), **_shared(vocabulary))


def _ranged(arguments: dict[str, Any], small: bool) -> dict[str, Any]:
    return arguments | dict(initializer_range=0.08 if small else 0.02)


def _processor_2(kind: type[Any], tokenizer: PreTrainedTokenizerFast) -> Any:
    limits: dict[str, Any] = dict(min_pixels=56 * 56, max_pixels=16384 * 28 * 28)
    return kind(
        Qwen2VLImageProcessor(**limits, **_PATCHES),
        tokenizer,
        Qwen2VLVideoProcessor(**limits, **_PATCHES),
        chat_template=chatml(**_WRAPPED, system="You are a helpful assistant."),
    )


def _qwen2_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLProcessor:
    return _processor_2(Qwen2VLProcessor, tokenizer)


def _qwen2_5_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    return _processor_2(Qwen2_5_VLProcessor, tokenizer)


def _qwen3_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    # The two ends are numbers of pixels: of a picture, and of all frames of a video.
    picture = {"shortest_edge": 64 * 32 * 32, "longest_edge": 16384 * 32 * 32}
    video = {"shortest_edge": 4 * 32 * 32, "longest_edge": 24576 * 32 * 32}
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(size=picture, **_PATCHES_3, **_HALF),
        tokenizer,
        Qwen3VLVideoProcessor(size=video, fps=2, min_frames=4, max_frames=768, **_PATCHES_3, **_HALF),
        # A video's frames are wrapped one by one, behind their time.
        chat_template=chatml(_WRAPPED["image"], _VIDEO),
    )


QWEN2_VL = Published(
    name="qwen2-vl-7b",
    checkpoint="Qwen/Qwen2-VL-7B-Instruct",
    parameters=8_291_375_616,
    vocabulary=qwen_tokens.vocabulary(152064, qwen_tokens.VISION),
    make_config=_qwen2,
    make_processor=_qwen2_processor,
)
QWEN2_5_VL = Published(
    name="qwen2.5-vl-7b",
    checkpoint="Qwen/Qwen2.5-VL-7B-Instruct",
    parameters=8_292_166_656,
    vocabulary=qwen_tokens.vocabulary(152064, qwen_tokens.VISION),
    make_config=_qwen2_5,
    make_processor=_qwen2_5_processor,
)
QWEN3_VL = Published(
    name="qwen3-vl-8b",
    checkpoint="Qwen/Qwen3-VL-8B-Instruct",
    parameters=8_767_123_696,
    vocabulary=qwen_tokens.vocabulary(151936, qwen_tokens.VISION),
    make_config=_qwen3,
    make_processor=_qwen3_processor,
)
