"""DeepStack: features that are added to the visual tokens behind the first decoder layers leave with their tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from vtprune.kernels import gather_rows


class DeepStackRows:
    """Which of the DeepStack features belong to the slots that are left.

    Attributes:
        row: (rows, slots now), row of the slot's features among those that the language model was given.
    """

    METHOD: ClassVar[str] = "_deepstack_process"  # what the language model calls behind each of these layers

    def __init__(self, mask: Tensor) -> None:
        self.row = (mask.flatten().cumsum(0) - 1).view(mask.shape)

    @staticmethod
    def used_by(language_model: Any) -> bool:
        """Whether a language model takes DeepStack features."""
        return hasattr(language_model, DeepStackRows.METHOD)

    @staticmethod
    def levels(arguments: dict[str, Any]) -> list[Tensor]:
        """The features in a language model's arguments, (visual slots, width) for each layer."""
        return list(arguments.get("deepstack_visual_embeds") or ())

    def compact(self, index: Tensor) -> None:
        """Slots were removed; `index` (rows, slots now) says where the remaining ones stood."""
        self.row = gather_rows(self.row, index.to(self.row.device))

    def select(self, mask: Tensor, features: Tensor) -> Tensor:
        """The features of the visual slots that are left, which `mask` (rows, slots now) marks."""
        return features[self.row[mask].to(features.device)]


def spread(mask: Tensor, level: Tensor) -> Tensor:
    """Features (visual slots, width) on all slots of the flattened batch, (rows * slots, width)."""
    out = torch.zeros(mask.numel(), level.shape[-1], dtype=level.dtype, device=level.device)
    out[mask.flatten().to(level.device)] = level
    return out
