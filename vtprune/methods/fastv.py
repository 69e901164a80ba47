"""Keeps the visual tokens that the last prompt token attended to most in the decoder layer before the cut.

All layers up to the cut see the whole picture; what the question asks for decides what the others see.

Paper: "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language
Models", ECCV 2024, arXiv 2403.06764. Authors' code: github.com/pkunlp-icler/FastV (no licence at its root).
Differs from the paper in: the choice is made once, at prefill (the first code made it again for every generated token);
scores are float32 means of probabilities; every row of a batch has its own choice (there: row 0 decides for all);
several pictures of a row compete for the sum of their budgets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._select import given, top_k_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Place, Positions, Stage, VisualTokens, check_layer
from vtprune.methods.registry import register


@register("fastv")
@dataclasses.dataclass(frozen=True)
class FastV(Method):
    """One cut between two decoder layers."""

    kind = "pruning"
    places = (Place.DECODER_LAYER,)
    paper = "FastV, ECCV 2024, arXiv 2403.06764"
    cost = "N C for the attention of one query in one decoder layer"

    layer: int = 2  # first decoder layer with the reduced set, >= 1; scores come from the layer before
    keep: Budget = 0.5  # ratio in (0, 1] or tokens per picture; the paper's R is 1 - keep
    positions: Positions = "original"  # position ids after the removal: "original" or "compact"

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the input of a decoder layer."""
        layer = check_layer("layer", self.layer, 1, model.decoder_layers - 1)
        signals = frozenset({"last_query"})
        return [Stage(Place.DECODER_LAYER, self.decide, (layer,), signals, self.positions)]

    def decide(self, tokens: VisualTokens) -> Keep:
        """Keep the tokens with the most attention, over all pictures of a row together."""
        attention = given(tokens.attention, self.name, "last_query")
        return Keep(top_k_mask(attention, tokens.counts(self.keep), tokens.valid))


def blind_to(kept: Tensor, mask: Tensor) -> Tensor:
    """The paper's equivalent without a removal: an attention mask under which no query sees a dropped token.

    Args:
        kept: bool, (rows, keys), False on dropped tokens.
        mask: bool, (rows or 1, 1, queries, keys), True where a query may attend, causality included.
    """
    return mask & kept[:, None, None]
