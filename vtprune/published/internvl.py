"""InternVL3: InternViT-300M on tiles of 448 pixels, pixel shuffle to 256 tokens a tile, Qwen2.5-7B.

Numbers: config.json and preprocessor_config.json of OpenGVLab/InternVL3-8B-hf.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from vtprune.published import qwen_tokens
from vtprune.published.base import Published
from vtprune.published.templates import chatml
from vtprune.published.tokens import Vocabulary

_CONTEXT = "<IMG_CONTEXT>"
_NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": _CONTEXT,
    "video_token": "<video>",
}
# Between 151657 and 151664 lie Qwen2.5's tokens for tools and for filling in code. The processor writes <video> out
# as frames; the token only must have an id, which is that of a token for boxes.
_SPECIAL = qwen_tokens.VISION | {"<img>": 151665, "</img>": 151666, _CONTEXT: 151667, "<video>": 151673}
_PICTURE: dict[str, Any] = dict(
    size={"height": 448, "width": 448}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
)


def _config(vocabulary: Vocabulary, small: bool) -> InternVLConfig:
    widths: dict[str, Any] = dict(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    )
    if small:
        widths = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4)
    vision = InternVLVisionConfig(
        **widths,
        image_size=[448, 448],
        patch_size=[14, 14],
        attention_bias=True,
        use_qk_norm=False,
        norm_type="layer_norm",
        layer_norm_eps=1e-6,
        use_absolute_position_embeddings=True,
        use_mean_pooling=True,
        initializer_range=0.08 if small else 0.02,
    )
    text = Qwen2Config(
        **qwen_tokens.qwen2_7b(vocabulary, small),
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000.0},
    )
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=vocabulary[_CONTEXT],
        image_seq_length=256,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _processor(tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
    return InternVLProcessor(
        GotOcr2ImageProcessor(**_PICTURE, min_patches=1, max_patches=12),
        tokenizer,
        InternVLVideoProcessor(**_PICTURE),
        image_seq_length=256,
        chat_template=chatml(f"{_CONTEXT}\n", "<video>\n"),
    )


INTERNVL3 = Published(
    name="internvl3-8b",
    checkpoint="OpenGVLab/InternVL3-8B-hf",
    parameters=7_944_373_760,
    vocabulary=qwen_tokens.vocabulary(151674, _SPECIAL, _NAMED),
    make_config=_config,
    make_processor=_processor,
)
