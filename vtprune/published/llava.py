"""LLaVA-1.5 and LLaVA-NeXT: CLIP ViT-L/14 at 336 pixels, with Vicuna and Mistral.

Numbers: config.json and preprocessor_config.json of llava-hf/llava-1.5-7b-hf and llava-hf/llava-v1.6-mistral-7b-hf.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from vtprune.published.base import Published
from vtprune.published.templates import template
from vtprune.published.tokens import Vocabulary

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # (height, width), in pixels
_VOCABULARY = Vocabulary(
    size=32064,
    special={"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000, "<pad>": 32001},
    begin="<s>",
    end="</s>",
    pad="<pad>",
    first_byte=3,
)
_SHARED: dict[str, Any] = dict(vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=576)
_PICTURE: dict[str, Any] = dict(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
_PROCESSOR: dict[str, Any] = dict(
    patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1, image_token="<image>"
)


_TOWER: dict[str, Any] = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
_SMALL_TOWER = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4)
# Tower and decoder of the small LLaVA-1.5 keep their proportion: the tower has 4.5 percent of the decoder's weights.
_SMALL_VICUNA = dict(hidden_size=768, intermediate_size=2064, num_hidden_layers=12, num_attention_heads=12)
_SMALL_VICUNA_TOWER = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=9, num_attention_heads=3)


def _clip(widths: dict[str, Any]) -> CLIPVisionConfig:
    return CLIPVisionConfig(**widths, image_size=336, patch_size=14, projection_dim=768)


def _ids(vocabulary: Vocabulary) -> dict[str, Any]:
    return dict(bos_token_id=vocabulary["<s>"], eos_token_id=vocabulary["</s>"], pad_token_id=vocabulary["<pad>"])


def _vicuna(vocabulary: Vocabulary, small: bool) -> LlavaConfig:
    widths: dict[str, Any] = dict(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    if small:
        widths = _SMALL_VICUNA
    text = LlamaConfig(
        **widths,
        **_ids(vocabulary),
        num_key_value_heads=widths["num_attention_heads"],
        vocab_size=vocabulary.size,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.045 if small else 0.02,
    )
    vision = _clip(_SMALL_VICUNA_TOWER if small else _TOWER)
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocabulary["<image>"], **_SHARED)


def _mistral(vocabulary: Vocabulary, small: bool) -> LlavaNextConfig:
    widths: dict[str, Any] = dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32
    )
    if small:
        widths = dict(hidden_size=256, intermediate_size=896, num_hidden_layers=6, num_attention_heads=16)
    text = MistralConfig(
        **widths,
        **_ids(vocabulary),
        num_key_value_heads=widths["num_attention_heads"] // 4,
        vocab_size=vocabulary.size,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        initializer_range=0.08 if small else 0.02,
    )
    return LlavaNextConfig(
        vision_config=_clip(_SMALL_TOWER if small else _TOWER),
        text_config=text,
        image_token_index=vocabulary["<image>"],
        image_grid_pinpoints=PINPOINTS,
        **_SHARED,
    )


def _vicuna_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    chat = template("{{ m['role'] | upper }}: ", "{{ ' ' }}", "ASSISTANT:", image="<image>\n")
    return LlavaProcessor(CLIPImageProcessor(**_PICTURE), tokenizer, chat_template=chat, **_PROCESSOR)


def _mistral_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaNextProcessor:
    before = "{% if m['role'] == 'user' %}{{ '[INST] ' }}{% endif %}"
    after = "{{ ' [/INST]' if m['role'] == 'user' else '</s>' }}"
    images = LlavaNextImageProcessor(**_PICTURE, image_grid_pinpoints=PINPOINTS)
    chat = template(before, after, "", image="<image>\n")
    return LlavaNextProcessor(images, tokenizer, chat_template=chat, **_PROCESSOR)


LLAVA = Published(
    name="llava-1.5-7b",
    checkpoint="llava-hf/llava-1.5-7b-hf",
    parameters=7_063_427_072,
    vocabulary=_VOCABULARY,
    make_config=_vicuna,
    make_processor=_vicuna_processor,
    aliases=("llava-v1.5-7b",),
)
LLAVA_NEXT = Published(
    name="llava-v1.6-mistral-7b",
    checkpoint="llava-hf/llava-v1.6-mistral-7b-hf",
    parameters=7_566_747_648,
    vocabulary=_VOCABULARY,
    make_config=_mistral,
    make_processor=_mistral_processor,
    aliases=("llava-1.6-mistral-7b", "llava-next-mistral-7b"),
)
