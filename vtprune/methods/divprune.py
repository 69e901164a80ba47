"""Keeps a diverse set: each picked token is the one farthest (cosine) from all tokens picked before.

So nothing is kept twice, and rare things stay; neither the question nor any attention is looked at.

Paper: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025, arXiv 2503.02175.
Authors' code: github.com/vbdi/divprune.
Differs from the paper in: distances are float32 (there: half precision, which changes most picks in bfloat16); a picked
token is never picked again (there it can be, among duplicates, and then stands twice in the prompt); the selection runs
per picture, over the frames of a video together; a layout's newline tokens take no part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.kernels import greedy_select
from vtprune.methods._select import given, index_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("divprune")
@dataclasses.dataclass(frozen=True)
class DivPrune(Method):
    """Max-min diversity on the projected features."""

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    paper = "DivPrune, CVPR 2025, arXiv 2503.02175"
    cost = "N^2 C for the first pick, N K C for the others"

    keep: Budget = 0.098  # ratio in (0, 1] or tokens per picture; 0.098 of 576 is the paper's 56
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, on features after the projector."""
        return [Stage(Place.ENCODER_OUTPUT, self.decide, signals=frozenset({"projected"}), positions=self.positions)]

    def decide(self, pictures: Pictures) -> Keep:
        """Keep the most diverse tokens."""
        projected = given(pictures.projected, self.name, "projected")
        return Keep(diverse_mask(projected, pictures.count(self.keep)))


def diverse_mask(features: Tensor, count: int) -> Tensor:
    """Mark the `count` most diverse tokens of features (pictures, tokens, channels): bool, (pictures, tokens)."""
    tokens = features.shape[1]
    if count >= tokens:
        return features.new_ones(features.shape[:2], dtype=torch.bool)
    return index_mask(greedy_select(features, count), tokens)
