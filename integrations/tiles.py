"""What LLaVA-like families share: a tower that encodes a batch of tiles, and a projector behind it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.integrations.base import EncoderBlock, EncoderCall, Integration

_TOWERS = {"clip_vision_model": True, "siglip_vision_model": False}  # tower's model type: does it have a [CLS]?


class TileIntegration(Integration):
    """A CLIP or SigLIP tower over equally large square tiles, and a projector that takes token by token.

    A merge between encoder layers, or on the grid before the projector, is undone before tiles are put together: the
    features of a group are copied to all of its tokens, and the language model gets one slot per group.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        tower = self.model.config.vision_config.model_type
        if tower not in _TOWERS:
            raise ValueError(
                f"{self.family_name} has a {tower!r} vision tower; supported towers: {', '.join(sorted(_TOWERS))}."
            )
        self._check_feature_layer()

    def _check_feature_layer(self) -> None:
        if not isinstance(self.model.config.vision_feature_layer, int):
            raise ValueError(
                f"{self.family_name} concatenates the features of encoder layers "
                f"{self.model.config.vision_feature_layer}; supported: a single vision_feature_layer."
            )

    @property
    def tower(self) -> nn.Module:
        return self.multimodal.vision_tower

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        return (self.multimodal.multi_modal_projector,)

    @property
    def projects_tiles(self) -> bool:
        return True

    @property
    def all_encoder_layers(self) -> nn.ModuleList:
        return self.multimodal.vision_tower.encoder.layers

    @property
    def encoder_blocks(self) -> list[EncoderBlock]:
        layers: Any = self.all_encoder_layers
        return [self._block(layer) for layer in layers[: self._used]]

    @property
    def unused_encoder_blocks(self) -> list[EncoderBlock]:
        layers: Any = self.all_encoder_layers
        return [self._block(layer) for layer in layers[self._used :]]

    @property
    def _used(self) -> int:
        # hidden_states[0] is the embedding, hidden_states[i] the output of layer i - 1.
        chosen = self.model.config.vision_feature_layer
        return chosen if chosen >= 0 else len(self.all_encoder_layers) + 1 + chosen

    @property
    def encoder_heads(self) -> int:
        return self.model.config.vision_config.num_attention_heads

    def _block(self, layer: Any) -> EncoderBlock:
        attention = layer.self_attn
        queries_keys = (attention.q_proj, attention.k_proj)
        return EncoderBlock(layer, attention, queries_keys, layer.layer_norm2, layer.mlp, values=attention.v_proj)

    @property
    def has_cls(self) -> bool:
        return _TOWERS[self.model.config.vision_config.model_type]

    @property
    def leading(self) -> int:
        return 1 if self.model.config.vision_feature_select_strategy == "default" else 0

    @property
    def side(self) -> int:
        """Patches per side of a tile."""
        vision = self.model.config.vision_config
        return vision.image_size // vision.patch_size

    @property
    def patches_per_picture(self) -> int | None:
        return self.side**2

    @property
    def encoder_width(self) -> int:
        return self.model.config.vision_config.hidden_size

    def encoder_scale(self, block: EncoderBlock) -> float:
        attention: Any = block.attention
        return attention.scale

    def encoder_attention_implementation(self, block: EncoderBlock) -> str:
        attention: Any = block.attention
        return attention.config._attn_implementation

    def encoder_queries_keys(
        self, block: EncoderBlock, outputs: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> list[tuple[Tensor, Tensor]]:
        attention: Any = block.attention
        queries, keys = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in outputs)
        return [(queries, keys)]

    def check(self, call: EncoderCall) -> None:
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            known = getattr(self.model.config, name, None)
            if known is not None and (asked := call.arguments.get(name)) not in (None, known):
                raise ValueError(
                    f"{name}={asked!r} differs from the {known!r} of the model's config; set model.config.{name} "
                    "before vtprune.apply."
                )

    def encoder_lengths(self, layer: int, call: EncoderCall) -> list[int]:
        return [self.side**2 + int(self.has_cls)] * self.tiles(call)

    def refusal(self, method: str, place: str, needs_grid: bool) -> str | None:
        if self.leading != int(self.has_cls) and (needs_grid or place == "encoder layer"):
            return (
                f"it needs the plain grid of patches, but this model drops {self.leading} leading tokens of an encoder "
                f"{'with' if self.has_cls else 'without'} [CLS]; "
                "set vision_feature_select_strategy='default' with [CLS] and 'full' without, or use divprune"
            )
        return None

    def scores_on_slots(self, call: EncoderCall, scores: list[Tensor]) -> list[Tensor]:
        (per_tile,) = scores
        return self.assemble(call, self._blocks(call, per_tile[:, self.leading :]).mean(2))

    def features_on_slots(self, call: EncoderCall, features: Tensor) -> list[Tensor]:
        return self.assemble(call, features)

    def pixels_on_slots(self, call: EncoderCall) -> list[Tensor]:
        tiles = self.tile_pixels(call)
        patch = self.model.config.vision_config.patch_size
        cell = (patch if isinstance(patch, int) else patch[0]) * self.patches_per_token(call)
        # Cut off what is left over at the right and at the bottom, as the patch embedding does.
        height, width = (side // cell * cell for side in tiles.shape[2:])
        cells = tiles[:, :, :height, :width].unflatten(3, (-1, cell)).unflatten(2, (-1, cell))
        return self.assemble(call, cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))

    def owners_on_slots(self, call: EncoderCall, owner: Tensor) -> list[Tensor]:
        if owner.shape[1] == self.side**2 and self.patches_per_token(call) > 1:
            # Tokens show the same where all of their patches do.
            parts = self._blocks(call, owner)
            tile = torch.arange(len(owner), device=owner.device)[:, None, None].expand(-1, parts.shape[1], 1)
            parts = torch.cat((tile, parts), dim=-1)
            owner = parts.flatten(0, 1).unique(dim=0, return_inverse=True)[1].view(len(owner), -1)
        tiles, _ = owner.shape
        # Groups of different tiles are different groups; patches that were dropped stay below zero.
        numbers = owner + int(owner.max() + 1) * owner.new_tensor(range(tiles))[:, None]
        numbers = torch.where(owner < 0, owner, numbers)
        return [
            torch.where(source < 0, -1, numbers.flatten()[source.clamp_min(0)]) for source in self.sources(call, owner)
        ]

    def _blocks(self, call: EncoderCall, values: Tensor) -> Tensor:
        """(tiles, patches, ...) as (tiles, tokens, patches of a token, ...)."""
        n = self.patches_per_token(call)
        if n == 1:
            return values.unsqueeze(2)
        side, rest = self.side // n, values.shape[2:]
        return values.view(-1, side, n, side, n, *rest).transpose(2, 3).reshape(len(values), side**2, n * n, *rest)

    @abstractmethod
    def tiles(self, call: EncoderCall) -> int:
        """How many tiles a call encodes."""

    def tile_pixels(self, call: EncoderCall) -> Tensor:
        """The tiles that a call encodes, (tiles, channels, height, width)."""
        return call.arguments["pixel_values"]

    @abstractmethod
    def assemble(self, call: EncoderCall, values: Tensor) -> list[Tensor]:
        """Values per token of every tile (tiles, tokens, channels) as (slots, channels) of every unit; newlines get 0.

        In float32 where tiles are resampled.
        """

    @abstractmethod
    def sources(self, call: EncoderCall, like: Tensor) -> list[Tensor]:
        """(slots,) of every unit: tile * tokens per tile + token that each slot shows; -1 on newlines.

        Args:
            call: The call that encoded the units.
            like: (tiles, tokens).
        """
