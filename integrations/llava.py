"""LLaVA-1.5: one picture, one square grid of patches, an MLP projector, a Llama-like decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.integrations.base import EncoderCall, Map, PictureLayout
from vtprune.integrations.tiles import TileIntegration


class LlavaIntegration(TileIntegration):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower."""

    family = "llava"
    model_types = ("llava",)
    auto_positions = "compact"

    def layouts(self, call: EncoderCall) -> list[PictureLayout]:
        patch = self.model.config.vision_config.patch_size
        rows, columns = (side // patch for side in call.arguments["pixel_values"].shape[-2:])
        tokens = rows * columns + int(self.has_cls) - self.leading
        grid = (1, rows, columns) if tokens == rows * columns else (1, 1, tokens)
        return [PictureLayout("image", (Map("picture", grid),), tokens)] * self.tiles(call)

    def encoder_lengths(self, layer: int, call: EncoderCall) -> list[int]:
        patch = self.model.config.vision_config.patch_size
        rows, columns = (side // patch for side in call.arguments["pixel_values"].shape[-2:])
        return [rows * columns + int(self.has_cls)] * self.tiles(call)

    def tiles(self, call: EncoderCall) -> int:
        return call.arguments["pixel_values"].shape[0]

    def assemble(self, call: EncoderCall, values: Tensor) -> list[Tensor]:
        return list(values)

    def sources(self, call: EncoderCall, like: Tensor) -> list[Tensor]:
        return list(torch.arange(like.numel(), device=like.device).view_as(like))
