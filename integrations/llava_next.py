"""LLaVA-NeXT: a thumbnail and tiles (anyres), put together, unpadded, and ended by a newline token per row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

from vtprune.integrations.base import EncoderCall, Map, PictureLayout
from vtprune.integrations.tiles import TileIntegration


class LlavaNextIntegration(TileIntegration):
    """`LlavaNextForConditionalGeneration`.

    A picture of several tiles is a thumbnail and the canvas that its tiles form together; every row of the canvas ends
    with a newline. A picture of one tile is followed by a single newline. How tiles become slots is asked of the
    model's own `pack_image_features`, with coordinates in the place of features.
    """

    family = "llava_next"
    model_types = ("llava_next",)
    auto_positions: ClassVar[Literal["original", "compact"]] = "compact"

    def layouts(self, call: EncoderCall) -> list[PictureLayout]:
        like = torch.zeros(self.tiles(call), self.side**2)
        sources = self.sources(call, like)
        return [self._layout(source, first) for source, first in zip(sources, self._starts(call), strict=True)]

    def _layout(self, source: Tensor, first: int) -> PictureLayout:
        tokens, side = self.side**2, self.side
        if len(source) == tokens + 1:
            return PictureLayout("image", (Map("picture", (1, side, side)),), tokens + 1)
        canvas = source[tokens:]
        rows = int((canvas < 0).sum())
        columns = len(canvas) // max(rows, 1) - 1
        thumbnail = Map("thumbnail", (1, side, side))
        if rows == 0 or columns == 0:  # so long and thin that unpadding left no token, at most newlines
            return PictureLayout("image", (thumbnail,), len(source))
        tile = (canvas.view(rows, columns + 1)[:, :columns] - first * tokens) // tokens
        bands = (_runs(tile[:, 0]), _runs(tile[0]))
        return PictureLayout(
            "image", (thumbnail, Map("canvas", (1, rows, columns), tokens, gap=1, bands=bands)), len(source)
        )

    def tiles(self, call: EncoderCall) -> int:
        if call.kind == "video":  # in the families that are built on this one
            videos, frames = call.arguments["pixel_values_videos"].shape[:2]
            return videos * frames
        return sum(self._tiles_per_picture(call))

    def tile_pixels(self, call: EncoderCall) -> Tensor:
        if call.kind == "video":
            return call.arguments["pixel_values_videos"].flatten(0, 1)
        pixels = call.arguments["pixel_values"]
        if pixels.ndim == 4:
            return pixels
        # Pictures are padded to the one with the most tiles.
        return torch.cat([x[:count] for x, count in zip(pixels, self._tiles_per_picture(call), strict=True)])

    def _tiles_per_picture(self, call: EncoderCall) -> list[int]:
        config = self.model.config
        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in call.arguments["image_sizes"]
        ]

    def _starts(self, call: EncoderCall) -> list[int]:
        """Number of the first tile of every picture."""
        counts = self._tiles_per_picture(call)
        return [sum(counts[:i]) for i in range(len(counts))]

    def assemble(self, call: EncoderCall, values: Tensor) -> list[Tensor]:
        pictures = values.split(self._tiles_per_picture(call))
        return self._packed(pictures, call, values.new_zeros(values.shape[-1]))

    def _packed(self, pictures: Sequence[Tensor], call: EncoderCall, newline: Tensor) -> list[Tensor]:
        chosen = call.arguments.get("vision_feature_select_strategy")
        packed, _ = self.multimodal.pack_image_features(
            pictures,
            call.arguments["image_sizes"],
            vision_feature_select_strategy=chosen or self.model.config.vision_feature_select_strategy,
            image_newline=newline,
        )
        return packed

    def sources(self, call: EncoderCall, like: Tensor) -> list[Tensor]:
        # float64 is exact for any number of tokens.
        numbers = torch.arange(like.numel(), dtype=torch.float64, device=like.device).view(*like.shape, 1)
        pictures = numbers.split(self._tiles_per_picture(call))
        packed = self._packed(pictures, call, numbers.new_full((1,), -1.0))
        return [x.squeeze(1).round().long() for x in packed]

    def canvas_shape(self, size: Tensor) -> tuple[int, int]:
        """Rows and columns of tiles of a picture of this (height, width)."""
        config = self.model.config
        return get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)


def _runs(tiles: Tensor) -> tuple[int, ...]:
    """Lengths of the runs of equal numbers."""
    return tuple(tiles.unique_consecutive(return_counts=True)[1].tolist())
