"""All visual tokens leave at a fixed decoder layer.

What the text has not read from the picture by then is lost.

Not from one paper: the fixed-layer form of visual exits such as ToDRE's second stage (arXiv 2505.18757). The layers
before keep their visual keys and values for decoding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from vtprune.methods.base import Keep, Method, ModelInfo, Place, Positions, Stage, VisualTokens, check_layer
from vtprune.methods.registry import register


@register("exit")
@dataclasses.dataclass(frozen=True)
class Exit(Method):
    """Visual exit at one layer."""

    kind = "exit"
    places = (Place.DECODER_LAYER,)
    cost = "none"

    layer: int | None = None  # first decoder layer without visual tokens, >= 1; None: half of the layers see them
    positions: Positions = "original"  # position ids after the removal: "original" or "compact"

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One removal at the input of a decoder layer."""
        layer = max(1, model.decoder_layers // 2) if self.layer is None else self.layer
        layer = check_layer("layer", layer, 1, model.decoder_layers - 1)
        return [Stage(Place.DECODER_LAYER, self.decide, (layer,), positions=self.positions)]

    def decide(self, tokens: VisualTokens) -> Keep:
        """Keep none."""
        return Keep(torch.zeros_like(tokens.valid))
