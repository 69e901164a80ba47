"""Small processors of the families that take videos, built in place: no download, a tokenizer of 576 tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    GotOcr2ImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextVideoProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava_next_video.video_processing_llava_next_video import LlavaNextVideoVideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from vtprune.evals.vocabulary import build_tokenizer

SIDE = 56
"""Side of what the LLaVA families and InternVL see, in pixels; they have patches of 14."""

_TEMPLATE = (
    "{%- for message in messages -%}USER: "
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- 'IMAGE' -}}"
    "{%- elif part['type'] == 'video' -%}{{- 'VIDEO' -}}"
    "{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}"
)


def _template(image: str, video: str) -> str:
    return _TEMPLATE.replace("IMAGE", image).replace("VIDEO", video)


def _tokenizer(**tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens=tokens,
    )


def _qwen(kind: Any, video_kind: Any, patch: int) -> Any:
    tokens = {f"{what}_token": f"<|{what}_pad|>" for what in ("image", "video")}
    around = {f"vision_{end}_token": f"<|vision_{end}|>" for end in ("start", "end")}
    block = (2 * patch) ** 2
    return kind(
        Qwen2VLImageProcessor(size={"shortest_edge": 4 * block, "longest_edge": 16 * block}, patch_size=patch),
        _tokenizer(**tokens, **around),
        # Qwen3-VL counts the pixels of all frames together.
        video_kind(size={"shortest_edge": 4 * block, "longest_edge": (32 if patch == 16 else 1) * 16 * block}),
        chat_template=_template(*(f"<|vision_start|>{token}<|vision_end|>" for token in tokens.values())),
    )


def _internvl() -> Any:
    tokens = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    size = {"height": SIDE, "width": SIDE}
    return InternVLProcessor(
        GotOcr2ImageProcessor(size=size, max_patches=4),
        _tokenizer(**tokens, video_token="<video>"),
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=_template("<IMG_CONTEXT>\n", "<video>\n"),
    )


def _llava_onevision() -> Any:
    size = {"height": SIDE, "width": SIDE}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[SIDE, SIDE], [SIDE, 2 * SIDE]]),
        _tokenizer(image_token="<image>", video_token="<video>"),
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_template("<image>\n", "<video>\n"),
    )


def _llava_next_video() -> Any:
    sizes: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**sizes),
        LlavaNextImageProcessor(**sizes, image_grid_pinpoints=[[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]),
        _tokenizer(image_token="<image>", video_token="<video>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>\n", "<video>\n"),
    )


VIDEO_PROCESSORS: dict[str, Callable[[], Any]] = {
    "qwen2_vl": lambda: _qwen(Qwen2VLProcessor, Qwen2VLVideoProcessor, 14),
    "qwen2_5_vl": lambda: _qwen(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, 14),
    "qwen3_vl": lambda: _qwen(Qwen3VLProcessor, Qwen3VLVideoProcessor, 16),
    "internvl": _internvl,
    "llava_onevision": _llava_onevision,
    "llava_next_video": _llava_next_video,
}
