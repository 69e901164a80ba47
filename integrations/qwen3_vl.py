"""Qwen3-VL: as Qwen2-VL, with DeepStack features for the first decoder layers and timestamps between video frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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

    def spread_units(self, output: Any, index: Sequence[Tensor]) -> None:
        super().spread_units(output, index)
        levels = []
        for level in output.deepstack_features:
            whole = isinstance(level, Tensor)  # as older transformers has it
            units = level.split([int(i.max()) + 1 for i in index]) if whole else level
            spread = tuple(x[i] for x, i in zip(units, index, strict=True))
            levels.append(torch.cat(spread) if whole else spread)
        output.deepstack_features = levels
