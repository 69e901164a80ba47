"""What the language models of all families consist of: decoder layers of the shape that LLaMA's have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from vtprune.compat import rotate


class DecoderParts:
    """The part of an integration that is about the language model."""

    model: Any
    family: ClassVar[str]

    @property
    def family_name(self) -> str:
        """The name by which reports and errors call the model."""
        return f"{type(self.model).__name__} ({self.family})"

    @property
    def multimodal(self) -> Any:
        """The module that encodes pictures, puts their features into the text embeddings and calls the decoder."""
        return self.model.model

    @property
    def language_model(self) -> Any:
        """The decoder without its head."""
        return self.multimodal.language_model

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder's layers."""
        return self.language_model.layers

    def decoder_normed(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """What a decoder layer's attention works on, for hidden states that are about to enter the layer."""
        norm: Any = layer.input_layernorm
        return norm(hidden)

    def decoder_queries(self, layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated queries (rows, heads, n, head_dim) of a decoder layer for n normalised hidden states per row."""
        return _rotated(layer.self_attn, "q", hidden, cos, sin)

    def decoder_keys(self, layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated keys (rows, kv_heads, n, head_dim) of a decoder layer for n normalised hidden states per row."""
        return _rotated(layer.self_attn, "k", hidden, cos, sin)

    def decoder_logits(self, hidden: Tensor) -> Tensor:
        """What the model's last norm and its head make of hidden states."""
        logits: Tensor = self.model.get_output_embeddings()(self.language_model.norm(hidden))
        return logits

    def decoder_projections(self, layer: nn.Module) -> tuple[tuple[nn.Module, ...], nn.Module]:
        """What makes a decoder layer's queries, keys and values, and what takes its heads' outputs.

        Raises:
            ValueError: They are not modules of their own.
        """
        attention: Any = layer.self_attn
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        if not all(hasattr(attention, name) for name in names):
            raise ValueError(
                f"{self.family_name} has a decoder without {', '.join(names)}, on which this method acts; let tokens "
                "leave instead (divprune)."
            )
        return (attention.q_proj, attention.k_proj, attention.v_proj), attention.o_proj

    def decoder_mlp(self, layer: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module, Callable[[Tensor], Tensor]]:
        """Gate, up and down projection of a decoder layer's gated MLP, and the activation of its gate.

        Raises:
            ValueError: It is made otherwise.
        """
        mlp: Any = layer.mlp
        names = ("gate_proj", "up_proj", "down_proj", "act_fn")
        if not all(hasattr(mlp, name) for name in names):
            raise ValueError(
                f"{self.family_name} has decoder MLPs without {', '.join(names)}, on which this method acts; let "
                "tokens leave instead (divprune)."
            )
        return mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn

    @property
    def decoder_channels(self) -> int:
        """Intermediate channels of a decoder layer's MLP."""
        return self.model.config.get_text_config().intermediate_size

    @property
    def decoder_heads(self) -> int:
        """Query heads of a decoder layer."""
        return self.model.config.get_text_config().num_attention_heads

    @property
    def decoder_kv_heads(self) -> int:
        """Key-value heads of a decoder layer."""
        text = self.model.config.get_text_config()
        return getattr(text, "num_key_value_heads", None) or text.num_attention_heads

    def decoder_width(self, layer: nn.Module) -> int:
        """Width of a decoder layer's attention, query heads * head_dim."""
        attention: Any = layer.self_attn
        return attention.config.num_attention_heads * attention.head_dim

    def decoder_scale(self, layer: nn.Module) -> float:
        """Softmax scale of a decoder layer's attention."""
        attention: Any = layer.self_attn
        return attention.scaling


def _rotated(attention: Any, which: str, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    heads = getattr(attention, f"{which}_proj")(hidden).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{which}_norm", None)
    if norm is not None:
        heads = norm(heads)
    # Trial runs ask layers that may be on another device than the call is.
    return rotate(heads.transpose(1, 2), cos.to(heads.device), sin.to(heads.device))
