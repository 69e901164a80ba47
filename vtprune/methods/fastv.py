"""Keeps the visual tokens that the last prompt token attended to most in the decoder layer before the cut.

All layers up to the cut see the whole picture; what the question asks for decides what the others see.

Paper: "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language
Models", ECCV 2024, arXiv 2403.06764. Authors' code: github.com/pkunlp-icler/FastV (no licence at its root).
Differs from the paper in: the choice is made once, at prefill (the first code made it again for every generated token);
scores are float32 means of probabilities; every row of a batch has its own choice (there: row 0 decides for all);
several pictures of a row compete for the sum of their budgets.

The paper's figures over K and R come from a second variant, `hide=True`: nothing leaves, but from the layer on nobody
attends to what was not chosen. It saves nothing at all; its answers are those of the first variant, whose tokens leave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from vtprune.budget import Budget
from vtprune.methods._select import check_choice, check_whole_numbers, given, top_k_mask
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
    hide: bool = False  # True: tokens stay, but are hidden from all later queries; saves nothing, and `layer` may be 0
    seed: int = 0  # of the choice at layer 0, which is random as there are no scores yet; whole number >= 0
    positions: Positions = "original"  # position ids after the removal: "original" or "compact"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("hide", self.hide, (False, True))
        if isinstance(check_whole_numbers("seed", self.seed, least=0), tuple):
            raise TypeError(f"seed must be a whole number >= 0, got {self.seed!r}.")
        if self.hide and self.positions != "original":
            raise ValueError(f"positions must be 'original' where tokens are hidden, got {self.positions!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the input of a decoder layer."""
        layer = check_layer("layer", self.layer, 0 if self.hide else 1, model.decoder_layers - 1)
        signals = frozenset({"last_query"} if layer else ())
        return [Stage(Place.DECODER_LAYER, self.decide, (layer,), signals, self.positions, hides=self.hide)]

    def decide(self, tokens: VisualTokens) -> Keep:
        """Keep the tokens with the most attention, at layer 0 random ones, over all pictures of a row together."""
        if tokens.layer:
            scores = given(tokens.attention, self.name, "last_query")
        else:
            generator = torch.Generator().manual_seed(self.seed)
            scores = torch.rand(tokens.valid.shape[1], generator=generator).expand(tokens.valid.shape)
            scores = scores.to(tokens.valid.device)
        return Keep(top_k_mask(scores, tokens.counts(self.keep), tokens.valid))
