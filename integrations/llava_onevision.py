"""LLaVA-OneVision: SigLIP tiles as in LLaVA-NeXT, large canvases shrunk, video frames pooled to half their sides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.integrations.base import EncoderCall, Map, PictureLayout
from vtprune.integrations.llava_next import LlavaNextIntegration


class LlavaOnevisionIntegration(LlavaNextIntegration):
    """`LlavaOnevisionForConditionalGeneration`.

    Of several pictures in one prompt, each is one tile. A video is one token map per frame and a single newline at its
    end. Tokens of shrunk canvases and of pooled frames are mixed from several patches; such a token belongs to the tile
    and to the merged group of the patch nearest to its centre.
    """

    family = "llava_onevision"
    model_types = ("llava_onevision",)
    modalities = ("image", "video")
    joins_patches = True
    auto_positions = "original"
    grid_stages = "language model"  # pooled and shrunk maps are smaller than those before the projector

    def layouts(self, call: EncoderCall) -> list[PictureLayout]:
        if call.kind == "image":
            return super().layouts(call)
        videos, frames = call.arguments["pixel_values_videos"].shape[:2]
        side = -(-self.side // 2)
        one = Map("video", (frames, side, side))
        return [PictureLayout("video", (one,), one.tokens + 1)] * videos

    def _tiles_per_picture(self, call: EncoderCall) -> list[int]:
        counts = super()._tiles_per_picture(call)
        per_sample = call.arguments.get("batch_num_images")
        if per_sample is None:
            return counts
        alone = [n == 1 for n in torch.as_tensor(per_sample).tolist() for _ in range(n)]
        return [count if tiled else 1 for count, tiled in zip(counts, alone, strict=True)]

    def assemble(self, call: EncoderCall, values: Tensor) -> list[Tensor]:
        if call.kind == "image":
            return super().assemble(call, values)
        videos = call.arguments["pixel_values_videos"].shape[0]
        pooled = self.multimodal.apply_pooling(values.float()).unflatten(0, (videos, -1)).flatten(1, 2)
        return [torch.nn.functional.pad(video, (0, 0, 0, 1)) for video in pooled]

    def _packed(self, pictures: Sequence[Tensor], call: EncoderCall, newline: Tensor) -> list[Tensor]:
        ratio = call.arguments.get("vision_aspect_ratio") or self.model.config.vision_aspect_ratio
        pictures = [picture.float() for picture in pictures]  # half precision cannot be resampled on every device
        packed, _ = self.multimodal.pack_image_features(
            pictures, call.arguments["image_sizes"], image_newline=newline.float(), vision_aspect_ratio=ratio
        )
        return packed

    def sources(self, call: EncoderCall, like: Tensor) -> list[Tensor]:
        side = self.side
        rows, columns = (x.flatten().to(like.device) for x in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
        if call.kind == "video":
            # Pooling is linear, so a pooled coordinate is the centre of what a token was mixed from.
            at = torch.stack((rows, columns), -1).float().expand(len(like), -1, -1)
            pooled = self.multimodal.apply_pooling(at).round().long().clamp(0, side - 1)
            frames = torch.arange(len(like), device=like.device)[:, None] * side**2
            source = (frames + pooled[..., 0] * side + pooled[..., 1]).unflatten(
                0, (call.arguments["pixel_values_videos"].shape[0], -1)
            )
            return [torch.nn.functional.pad(x.flatten(), (0, 1), value=-1) for x in source]
        pictures, shapes = [], []
        for count, size in zip(self._tiles_per_picture(call), call.arguments["image_sizes"], strict=True):
            shape = self.canvas_shape(size) if count > 1 else (1, 1)
            tile = torch.arange(max(count - 1, 1), device=like.device)[:, None]
            at = torch.stack(
                (tile // shape[1] * side + rows, tile % shape[1] * side + columns, torch.ones_like(tile + rows)), -1
            )
            pictures.append((torch.cat((at[:1], at)) if count > 1 else at).float())
            shapes.append(shape)
        found, first = [], 0
        packed = self._packed(pictures, call, like.new_zeros(3, dtype=torch.float32))
        for at, count, shape in zip(packed, self._tiles_per_picture(call), shapes, strict=True):
            row, column = (at[:, i].round().long().clamp(0, shape[i] * side - 1) for i in range(2))
            tile = row // side * shape[1] + column // side + int(count > 1)
            tile[: side**2] = 0  # the thumbnail
            source = (first + tile) * side**2 + row % side * side + column % side
            found.append(torch.where(at[:, 2] < 0.5, -1, source))
            first += count
        return found
