"""Picks tokens that are important and unlike those picked before (maximal marginal relevance).

Each pick weighs the encoder's attention to a token against its cosine to the most similar token that was picked before.

Paper: "IDPruner: Harmonizing Importance and Diversity in Visual Token Pruning for MLLMs", arXiv 2602.13315.
Authors' code: in github.com/Tencent/AngelSlim.
Differs from the paper in: importance is the encoder's attention, or the length of the features, both without training
(there: a scorer that is trained for each model); the pictures of a prompt are decided one by one (there: together).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.kernels import greedy_select
from vtprune.kernels._shared import full_precision, unit_rows
from vtprune.methods._select import check_choice, check_number, given, index_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("idpruner")
@dataclasses.dataclass(frozen=True)
class IDPruner(Method):
    """Importance against redundancy on the projected features.

    Importance lies in [0, 1] within a picture, while the similarity of projected tokens often lies in 0.3 to 0.95: a
    trade-off of 0.5 is not half of each.
    """

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    paper = "IDPruner, arXiv 2602.13315"
    cost = "N K C for the greedy choice; N D for attention with [CLS], N^2 D without"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture; the paper also has 0.1
    importance: Literal["attention", "norm"] = "attention"  # of the encoder, or length of the projected features
    trade_off: float = 0.5  # the paper's lambda, weight of importance against similarity, in [0, 1]
    parallel: int = 1  # picks per step, >= 1; those of one step ignore each other
    positions: Positions = "original"  # position ids after the removal: "original", "compact" or "auto"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("importance", self.importance, ("attention", "norm"))
        check_number("trade_off", self.trade_off, 0, 1)
        if type(self.parallel) is not int or self.parallel < 1:
            raise ValueError(f"parallel must be a whole number >= 1, got {self.parallel!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output."""
        signals = {"projected", "encoder_attention"} if self.importance == "attention" else {"projected"}
        return [Stage(Place.ENCODER_OUTPUT, self.decide, signals=frozenset(signals), positions=self.positions)]

    def decide(self, pictures: Pictures) -> Keep:
        """Keep what is important and not yet there."""
        projected = given(pictures.projected, self.name, "projected")
        count = pictures.count(self.keep)
        if count >= pictures.tokens:
            return Keep(projected.new_ones(projected.shape[:2], dtype=torch.bool))
        if self.importance == "attention":
            scores = given(pictures.attention, self.name, "encoder_attention")
        else:
            scores = projected.detach().float().norm(dim=-1)
        picks = marginal_relevance(projected, scores, count, self.trade_off, self.parallel)
        return Keep(index_mask(picks, pictures.tokens))


def marginal_relevance(
    features: Tensor, scores: Tensor, count: int, trade_off: float = 0.5, parallel: int = 1
) -> Tensor:
    """Pick `count` tokens, each the best by importance minus its largest similarity (cosine) to those before.

    Args:
        features: (pictures, tokens, channels).
        scores: (pictures, tokens), of any scale; importance is what they are between their smallest and largest.
        count: Number of picks.
        trade_off: Weight of importance; similarity has the rest. The first step goes by importance alone.
        parallel: Picks per step.

    Returns:
        (pictures, count) int64, in the order of picking.
    """
    least, most = scores.detach().float().aminmax(dim=1, keepdim=True)
    importance = (scores.detach().float() - least) / (most - least + 1e-6)
    if parallel == 1:
        return greedy_select(features, count, rule="mmr", importance=importance, trade_off=trade_off)
    unit = unit_rows(features)
    nearest = torch.full_like(importance, -2.0)  # below every cosine
    picks: list[Tensor] = []
    for start in range(0, count, parallel):
        score = importance if not picks else trade_off * importance - (1 - trade_off) * nearest
        if picks:
            score = score.scatter(1, torch.cat(picks, 1), -torch.inf)
        new = score.argsort(dim=1, descending=True, stable=True)[:, : min(parallel, count - start)]
        picks.append(new)
        with full_precision(unit):
            likeness = unit @ unit.gather(1, new.unsqueeze(-1).expand(-1, -1, unit.shape[2])).transpose(1, 2)
        nearest = torch.maximum(nearest, likeness.amax(2))
    return torch.cat(picks, 1)
