"""LLaVA-1.5: one picture, one square grid of patches, an MLP projector, a Llama-like decoder.

Towers: CLIP, whose [CLS] token is dropped before the projector, and SigLIP, which has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.compat import rotate
from vtprune.integrations.base import EncoderBlock, Grid, Integration

_TOWERS = {"clip_vision_model": True, "siglip_vision_model": False}  # tower's model type: does it have a [CLS]?


class LlavaIntegration(Integration):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower."""

    family = "llava"
    model_types = ("llava",)

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        tower = self.model.config.vision_config.model_type
        if tower not in _TOWERS:
            raise ValueError(
                f"{self.family_name} has a {tower!r} vision tower; supported towers: {', '.join(sorted(_TOWERS))}."
            )
        if not isinstance(self.model.config.vision_feature_layer, int):
            raise ValueError(
                f"{self.family_name} concatenates the features of encoder layers "
                f"{self.model.config.vision_feature_layer}; supported: a single vision_feature_layer."
            )

    @property
    def multimodal(self) -> nn.Module:
        return self.model.model

    @property
    def tower(self) -> nn.Module:
        return self.model.model.vision_tower

    @property
    def projector(self) -> nn.Module:
        return self.model.model.multi_modal_projector

    @property
    def language_model(self) -> Any:
        return self.model.model.language_model

    @property
    def decoder_layers(self) -> nn.ModuleList:
        return self.language_model.layers

    @property
    def all_encoder_layers(self) -> nn.ModuleList:
        return self.model.model.vision_tower.encoder.layers

    @property
    def encoder_blocks(self) -> list[EncoderBlock]:
        layers: Any = self.all_encoder_layers
        # hidden_states[0] is the embedding, hidden_states[i] the output of layer i - 1.
        chosen = self.model.config.vision_feature_layer
        used = chosen if chosen >= 0 else len(layers) + 1 + chosen
        return [
            EncoderBlock(x, x.self_attn, x.self_attn.q_proj, x.self_attn.k_proj, x.layer_norm2, x.mlp)
            for x in layers[:used]
        ]

    @property
    def has_cls(self) -> bool:
        return _TOWERS[self.model.config.vision_config.model_type]

    @property
    def leading(self) -> int:
        return 1 if self.model.config.vision_feature_select_strategy == "default" else 0

    @property
    def patches_per_picture(self) -> int | None:
        vision = self.model.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    def encoder_heads(self, block: EncoderBlock) -> int:
        attention: Any = block.attention
        return attention.num_heads

    def encoder_scale(self, block: EncoderBlock) -> float:
        attention: Any = block.attention
        return attention.scale

    def encoder_attention_implementation(self, block: EncoderBlock) -> str:
        attention: Any = block.attention
        return attention.config._attn_implementation

    def grid(self, pixel_values: Tensor, tokens: int) -> Grid | None:
        patch = self.model.config.vision_config.patch_size
        rows, columns = pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch
        return (1, rows, columns) if rows * columns == tokens else None

    def placeholders(self, arguments: Mapping[str, Any]) -> Tensor | None:
        if arguments.get("pixel_values") is None and self.encoded_outputs(arguments) is None:
            return None
        token = self.model.config.image_token_id
        if (input_ids := arguments.get("input_ids")) is not None:
            return input_ids == token
        embeds = arguments["inputs_embeds"]
        placeholder = self.model.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        return (embeds == placeholder).all(-1)

    def encoded_outputs(self, arguments: Mapping[str, Any]) -> Any:
        return (arguments.get("mm_encoder_outputs") or {}).get("image")

    def decoder_queries(self, layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attention: Any = layer.self_attn
        return rotate(_heads(attention.q_proj(hidden), attention.head_dim), cos, sin)

    def decoder_keys(self, layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attention: Any = layer.self_attn
        return rotate(_heads(attention.k_proj(hidden), attention.head_dim), cos, sin)

    @property
    def encoder_width(self) -> int:
        return self.model.config.vision_config.hidden_size

    def decoder_width(self, layer: nn.Module) -> int:
        attention: Any = layer.self_attn
        return attention.config.num_attention_heads * attention.head_dim

    def decoder_scale(self, layer: nn.Module) -> float:
        attention: Any = layer.self_attn
        return attention.scaling


def _heads(projected: Tensor, head_dim: int) -> Tensor:
    return projected.unflatten(-1, (-1, head_dim)).transpose(1, 2)  # (rows, heads, n, head_dim)
