"""Keeps the visual tokens that the vision encoder's class token attends to most.

The ranking is that of the last block whose output is used, and the question plays no part in it.

Paper: "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster",
arXiv 2412.01818. Authors' code: github.com/Theia-4869/FasterVLM.
Differs from the paper in: scores are float32 (there: half precision, where many of them collide); encoders without a
class token (SigLIP, Qwen-VL), which the paper does not cover, use the attention that a token receives on average from
all tokens; tiled models keep their own row layout, the paper's stitched order is `stitched_order`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._select import given, top_k_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("fastervlm")
@dataclasses.dataclass(frozen=True)
class FasterVLM(Method):
    """Encoder-attention pruning at the encoder's output."""

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    paper = "FasterVLM, arXiv 2412.01818"
    cost = "N D with [CLS]; N^2 D without"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture; the paper has 432, 288, 144, 58 and 29 of 576
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, on every tile and frame with the same budget, as in the paper."""
        signals = frozenset({"encoder_attention"})
        return [
            Stage(
                Place.ENCODER_OUTPUT,
                self.decide,
                signals=signals,
                positions=self.positions,
                scope="tile",
                budget=self.keep,
            )
        ]

    def decide(self, pictures: Pictures) -> Keep:
        """Keep the tokens with the most attention."""
        attention = given(pictures.attention, self.name, "encoder_attention")
        return Keep(top_k_mask(attention, pictures.count(self.keep)))


def stitched_order(mask: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Order in which the paper's LLaVA-NeXT variant lays out the kept tokens of one tiled picture.

    The thumbnail's tokens come first, then those of the crops in raster order of the canvas that the crops form
    together: canvas row, crop column, column within the crop.

    Args:
        mask: bool, (1 + rows * columns, side * side), kept tokens of the thumbnail and of the crops in raster order.
        rows: Rows of crops.
        columns: Columns of crops.

    Returns:
        For every kept token its crop (0 is the thumbnail) and its index within the crop, both (kept,) int64.

    Raises:
        ValueError: The mask does not fit the grid of crops, or crops are not square.
    """
    crops, tokens = mask.shape
    side = round(tokens**0.5)
    if crops != 1 + rows * columns or side * side != tokens:
        raise ValueError(
            f"mask must be (1 + rows * columns, side * side) for rows={rows} and columns={columns}, "
            f"got {tuple(mask.shape)}."
        )
    slots = torch.arange(crops * tokens, device=mask.device)
    canvas = slots[tokens:].view(rows, columns, side, side).transpose(1, 2).flatten()
    order = torch.cat([slots[:tokens], canvas])
    order = order[mask.flatten()[order]]
    return order // tokens, order % tokens
