"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT; the patches of video frames are pooled before the projector."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.integrations.base import EncoderCall, Map, PictureLayout
from vtprune.integrations.llava_next import LlavaNextIntegration


class LlavaNextVideoIntegration(LlavaNextIntegration):
    """`LlavaNextVideoForConditionalGeneration`. A video is one map of pooled tokens per frame, without newlines."""

    family = "llava_next_video"
    model_types = ("llava_next_video",)
    modalities = ("image", "video")
    joins_patches = True

    def patches_per_token(self, call: EncoderCall) -> int:
        return self.model.config.spatial_pool_stride if call.kind == "video" else 1

    def layouts(self, call: EncoderCall) -> list[PictureLayout]:
        if call.kind == "image":
            return super().layouts(call)
        videos, frames = call.arguments["pixel_values_videos"].shape[:2]
        side = self.side // self.patches_per_token(call)
        one = Map("video", (frames, side, side))
        return [PictureLayout("video", (one,), one.tokens)] * videos

    def assemble(self, call: EncoderCall, values: Tensor) -> list[Tensor]:
        if call.kind == "image":
            return super().assemble(call, values)
        videos = call.arguments["pixel_values_videos"].shape[0]
        return list(values.unflatten(0, (videos, -1)).flatten(1, 2))

    def sources(self, call: EncoderCall, like: Tensor) -> list[Tensor]:
        if call.kind == "image":
            return super().sources(call, like)
        numbers = torch.arange(like.numel(), device=like.device).view(*like.shape, 1)
        return [x.squeeze(1) for x in self.assemble(call, numbers)]
