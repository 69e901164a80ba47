"""Keeps tokens that are diverse and relevant to the question: greedy choice by a conditional determinantal process.

Each step picks the token that adds most to the volume that the picked features span, after every feature was stretched
by how much it has to do with the question.

Paper: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", NeurIPS 2025,
arXiv 2506.10967. Authors' code: github.com/Theia-4869/CDPruner.
Differs from the paper in: relevance is the similarity of projected tokens to the embeddings of the prompt's text behind
the first picture (there: the negative similarity of CLIP's patches to CLIP's embedding of the question, whose text
tower is not part of a checkpoint; `relevance` computes that too, from given embeddings); it is scaled tile by tile
(there: over all tiles of a batch together); once the picks span all directions, the most relevant of the others follow
(there: fewer tokens than asked for); tiles keep their own row layout with newlines. Tokens weigh their relevance, as in
the paper, which rules out the least similar ones; where that asks more of this relevance than it can tell, `theta=0.5`
is the milder exponential form that the authors' code has as a comment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.kernels import greedy_select
from vtprune.kernels._shared import full_precision, unit_rows
from vtprune.methods._select import check_number, given, index_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("cdpruner")
@dataclasses.dataclass(frozen=True)
class CDPruner(Method):
    """Conditional diversity on the projected features of every tile and frame."""

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    paper = "CDPruner, NeurIPS 2025, arXiv 2506.10967"
    cost = "N K (C + K / 2) for the greedy choice, N C for relevance"
    needs_text = True

    keep: Budget = 0.111  # ratio in (0, 1] or tokens per picture; the paper has 128, 64 and 32 of 576
    # Tokens weigh exp(theta * relevance / (2 - 2 * theta)), in [0, 0.999]; None: their relevance, as in the paper.
    theta: float | None = None
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.theta is not None:
            check_number("theta", self.theta, 0, 0.999)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, on every tile and frame with the same budget, as in the paper."""
        return [
            Stage(
                Place.ENCODER_OUTPUT,
                self.decide,
                signals=frozenset({"projected", "text"}),
                positions=self.positions,
                scope="tile",
                budget=self.keep,
            )
        ]

    def decide(self, pictures: Pictures) -> Keep:
        """Keep the most diverse of the relevant tokens."""
        projected = given(pictures.projected, self.name, "projected")
        count = pictures.count(self.keep)
        if count >= pictures.tokens:
            return Keep(projected.new_ones(projected.shape[:2], dtype=torch.bool))
        text = given(pictures.text, self.name, "text")
        weight = relevance(projected, text, pictures.text_valid)
        if self.theta is not None:
            weight = (self.theta / (2 * (1 - self.theta)) * weight).exp()
        return Keep(index_mask(greedy_select(projected, count, rule="dpp", importance=weight), pictures.tokens))


def relevance(features: Tensor, text: Tensor, valid: Tensor | None = None, *, negative: bool = False) -> Tensor:
    """Relevance of each token to the text, from nearly 0 to 1 within a picture; 1 where all tokens are alike.

    Args:
        features: (pictures, tokens, channels).
        text: (pictures, n, channels), embeddings in the same space.
        valid: bool, (pictures, n), False on padding; without any text all tokens are equally relevant.
        negative: Whether the least similar tokens are the relevant ones, as in the space of CLIP.

    Returns:
        (pictures, tokens), float32.
    """
    asked = unit_rows(text)
    if valid is None:
        asked = asked.mean(1)
    else:
        asked = (asked * valid.unsqueeze(-1)).sum(1) / valid.sum(1, keepdim=True).clamp_min(1)
    with full_precision(asked):
        # The mean of the cosines is the cosine's numerator with the mean direction.
        cosine = (unit_rows(features) @ asked.unsqueeze(-1)).squeeze(-1)
    if negative:
        cosine = -cosine
    least, most = cosine.aminmax(dim=1, keepdim=True)
    return torch.where(most > least, (cosine - least + 1e-6) / (most - least), 1.0)
