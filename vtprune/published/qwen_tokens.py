"""The special tokens that all Qwen2-based models share, and the width table of Qwen2-7B."""

from __future__ import annotations

from typing import Any

from vtprune.published.tokens import Vocabulary

# From 151643 on, in this order.
CHAT = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
_MARKS = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end")
_VISION = ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
VISION = CHAT | {f"<|{name}|>": 151646 + i for i, name in enumerate(_MARKS + _VISION)}


def vocabulary(size: int, special: dict[str, int], named: dict[str, str] | None = None) -> Vocabulary:
    """Qwen's vocabulary: no token begins a text, <|im_end|> ends an answer."""
    return Vocabulary(size=size, special=special, end="<|im_end|>", pad="<|endoftext|>", named=named or {})


def qwen2_7b(vocabulary: Vocabulary, small: bool) -> dict[str, Any]:
    """Arguments of the text config of Qwen2-7B and Qwen2.5-7B, without positions."""
    widths: dict[str, Any] = dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28)
    heads = dict(num_attention_heads=28, num_key_value_heads=4)
    if small:
        widths = dict(hidden_size=224, intermediate_size=1184, num_hidden_layers=6)
        heads = dict(num_attention_heads=14, num_key_value_heads=2)
    return dict(
        **widths,
        **heads,
        **chat_ids(vocabulary),
        vocab_size=vocabulary.size,
        rms_norm_eps=1e-6,
        use_sliding_window=False,
        initializer_range=0.08 if small else 0.02,
    )


def chat_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Ids of the tokens that begin, end and pad."""
    begin = vocabulary["<|endoftext|>"]
    return dict(bos_token_id=begin, eos_token_id=vocabulary["<|im_end|>"], pad_token_id=begin)
