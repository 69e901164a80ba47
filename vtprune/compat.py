"""The names of other libraries that the engine relies on, in one place; tests/test_compat.py watches over them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import output_capturing

__all__ = [
    "Cache",
    "DynamicCache",
    "DynamicLayer",
    "at_hand",
    "attention_function",
    "build_mask",
    "encoder_arguments",
    "nothing_collected",
    "rotate",
]


class _Lengths:
    """Tells the mask builder how many keys precede the queries; it asks nothing else of a cache."""

    is_compileable = False

    def __init__(self, past: int) -> None:
        self.past = past

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.past

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.past + query_length, 0


def at_hand(module: nn.Module) -> AbstractContextManager[Any]:
    """A block in which a module's weights can be read, also where accelerate keeps them elsewhere between calls."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module)


def attention_function(module: nn.Module, implementation: str) -> Callable[..., Any]:
    """The function that an attention module calls under an implementation's name; "eager" is one of its own file."""
    own = sys.modules[type(module).__module__]
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, own.eager_attention_forward)


def build_mask(config: Any, hidden: Tensor, valid: Tensor | None, past: int) -> Any:
    """The causal mask that a decoder layer expects, in the form that its attention implementation needs.

    Args:
        config: The language model's config; names the attention implementation.
        hidden: (rows, queries, width), for its shape, dtype and device.
        valid: Bool (rows, past + queries), False on padding; None without padding.
        past: Number of keys before the first query.
    """
    # With a cache-like object the builder does not take gaps in position ids for packed sequences.
    lengths: Any = _Lengths(past)
    return create_causal_mask(
        config=config, inputs_embeds=hidden, attention_mask=valid, past_key_values=lengths, position_ids=None
    )


def encoder_arguments(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `get_image_features` or `get_video_features` under the names that they have in `forward`.

    Older `get_video_features` of LLaVA-OneVision and LLaVA-NeXT-Video call the pixels of videos `pixel_values`.
    """
    if kind == "video" and "pixel_values" in arguments:
        return {("pixel_values_videos" if k == "pixel_values" else k): v for k, v in arguments.items()}
    return arguments


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x (rows, heads, n, dim) by cos and sin (rows, n, dim), half-split as in Llama."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@contextmanager
def nothing_collected() -> Iterator[None]:
    """What runs meanwhile is not among the hidden states and attentions that a caller asked the model for."""
    token = output_capturing._active_collector.set(None)
    try:
        yield
    finally:
        output_capturing._active_collector.reset(token)
