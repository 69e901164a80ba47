"""Qwen3-VL: as Qwen2-VL, with DeepStack features for the first decoder layers and timestamps between video frames."""

from __future__ import annotations

from torch import nn

from vtprune.integrations.qwen2_vl import Qwen2VLIntegration


class Qwen3VLIntegration(Qwen2VLIntegration):
    """`Qwen3VLForConditionalGeneration`.

    The frames of a video stand apart in the prompt, with their times written between them; they are one video all the
    same. DeepStack features leave together with their tokens.
    """

    family = "qwen3_vl"
    model_types = ("qwen3_vl",)

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        return (self.tower.merger, *self.tower.deepstack_merger_list)
