"""What an integration is: the answers to the engine's questions about one model family, and nothing else."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

Grid = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class EncoderBlock:
    """The parts of one vision block that stages between encoder layers need.

    Args:
        layer: The whole block; called as `layer(hidden_states, attention_mask, ...)`.
        attention: Its self-attention.
        queries, keys: The projections of queries and keys, (pictures, tokens, heads * head_dim).
        before_mlp: The module that receives the residual stream between attention and MLP.
        mlp: The module whose output is added to that residual stream.
    """

    layer: nn.Module
    attention: nn.Module
    queries: nn.Module
    keys: nn.Module
    before_mlp: nn.Module
    mlp: nn.Module


class Integration(ABC):
    """Answers the engine's questions about one family, for one model.

    Args:
        model: The conditional-generation model itself, without any wrapper.

    Raises:
        ValueError: The model is of this family, but built in a way that is not supported; the message says why.
    """

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]

    def __init__(self, model: Any) -> None:
        self.model = model
        config: Any = self.model.config
        text = config.get_text_config()
        windowed = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
        if windowed or (not hasattr(text, "layer_types") and getattr(text, "sliding_window", None)):
            raise ValueError(
                f"{self.family_name} has a decoder with {', '.join(sorted(windowed)) or 'sliding-window attention'}; "
                "supported: full attention in every layer (for Mistral, sliding_window=None in the text config)."
            )

    @property
    @abstractmethod
    def multimodal(self) -> nn.Module:
        """The module that puts image features into the text embeddings and calls the language model."""

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower."""

    @property
    @abstractmethod
    def projector(self) -> nn.Module:
        """The projector from encoder features to the width of the language model."""

    @property
    @abstractmethod
    def language_model(self) -> Any:
        """The decoder without its head."""

    @property
    @abstractmethod
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder's layers."""

    @property
    @abstractmethod
    def encoder_blocks(self) -> list[EncoderBlock]:
        """The vision blocks whose output reaches the projector, in order."""

    @property
    @abstractmethod
    def all_encoder_layers(self) -> nn.ModuleList:
        """All vision blocks that run, also those after the last used one."""

    @property
    @abstractmethod
    def has_cls(self) -> bool:
        """Whether the encoder's first token is a [CLS] token."""

    @property
    @abstractmethod
    def leading(self) -> int:
        """How many of the encoder's first tokens are dropped before the projector."""

    @property
    @abstractmethod
    def patches_per_picture(self) -> int | None:
        """Patches of a picture in the encoder; None where it depends on the picture."""

    @abstractmethod
    def encoder_heads(self, block: EncoderBlock) -> int:
        """Number of attention heads of a vision block."""

    @abstractmethod
    def encoder_scale(self, block: EncoderBlock) -> float:
        """Softmax scale of a vision block's attention."""

    @abstractmethod
    def encoder_attention_implementation(self, block: EncoderBlock) -> str:
        """Name of the attention implementation of a vision block ("sdpa", "eager", "flash_attention_2", ...)."""

    @abstractmethod
    def grid(self, pixel_values: Tensor, tokens: int) -> Grid | None:
        """(frames, rows, columns) of the tokens that one picture enters the projector with; None if they form none."""

    @abstractmethod
    def placeholders(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """Which slots are visual, bool (rows, slots), from the arguments of `multimodal`; None without a picture."""

    @abstractmethod
    def encoded_outputs(self, arguments: Mapping[str, Any]) -> Any:
        """The tower's outputs if they were made before this call and passed to it, else None."""

    @abstractmethod
    def decoder_queries(self, layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated queries (rows, heads, n, head_dim) of a decoder layer for n normalised hidden states per row."""

    @abstractmethod
    def decoder_keys(self, layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated keys (rows, kv_heads, n, head_dim) of a decoder layer for n normalised hidden states per row."""

    @property
    @abstractmethod
    def encoder_width(self) -> int:
        """Width of the encoder's attention, heads * head_dim."""

    @abstractmethod
    def decoder_width(self, layer: nn.Module) -> int:
        """Width of a decoder layer's attention, query heads * head_dim."""

    @abstractmethod
    def decoder_scale(self, layer: nn.Module) -> float:
        """Softmax scale of a decoder layer's attention."""

    @property
    def family_name(self) -> str:
        """The name by which reports and errors call the model."""
        return f"{type(self.model).__name__} ({self.family})"
