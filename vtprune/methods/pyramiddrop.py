"""Lets visual tokens leave in stages: at a few decoder layers, those that the last prompt token is about to ignore.

At each cut the layer that comes next is asked, by its own norm and projections, how much attention the last prompt
token would pay to every visual token; the lowest ones leave. By default every cut leaves the same share of what the one
before left, so that the sequence narrows like a pyramid.

Paper: "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction", CVPR 2025,
arXiv 2410.17247. Authors' code: github.com/Cooperx521/PyramidDrop.
Differs from the paper in: layers are at a quarter, half and three quarters of any model's depth (there 8, 16 and 24,
also of 40 layers); counts are rounded to the nearest number (there down) and never 0; scores are float32; nothing is
truncated to a largest length; padding may be on either side, and every row of a batch and several pictures in a row
work, which then compete for the sum of their budgets; on models with three coordinates per position, ids stay by
default.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._cuts import arrived_first, check_cuts, counts_by_power, counts_of, cuts_at
from vtprune.methods._select import given, top_k_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Place, Positions, Stage, VisualTokens
from vtprune.methods.registry import register

PAPER = (8, 16, 24)


@register("pyramiddrop")
@dataclasses.dataclass(frozen=True)
class PyramidDrop(Method):
    """Cuts at several decoder layers.

    Of n cuts, cut j leaves keep ** (j / n) of each picture: a half, a quarter and an eighth with the default, which is
    the paper's preset. Other presets are given by `layers` and `shares`, (8, 16, 24) and (0.5, 0.25, 0.125), say.
    """

    kind = "pruning"
    places = (Place.DECODER_LAYER,)
    paper = "PyramidDrop, CVPR 2025, arXiv 2410.17247"
    cost = "per cut, keys of one decoder layer (N C^2) and N C for the attention of one query"

    keep: Budget = 0.125  # ratio in (0, 1] or tokens per picture behind the last cut
    layers: tuple[int, ...] | None = None  # first layers with fewer tokens, ascending, >= 1; None: as in the paper
    shares: tuple[Budget, ...] | None = None  # what each cut leaves of each picture; None: follows from `keep`
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        layers, shares = check_cuts(self.layers, self.shares, len(PAPER))
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "shares", shares)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One decision at the input of several decoder layers."""
        cuts = cuts_at(self.layers, PAPER, model.decoder_layers)
        decide = functools.partial(self.decide, cuts=cuts)
        return [
            Stage(Place.DECODER_LAYER, decide, tuple(cuts), frozenset({"last_query_ahead"}), positions=self.positions)
        ]

    def decide(self, tokens: VisualTokens, cuts: Mapping[int, int]) -> Keep:
        """Keep the tokens that get the most attention, over all pictures of a row together."""
        attention = given(tokens.attention, self.name, "last_query_ahead")
        return Keep(top_k_mask(attention, self.counts(tokens, cuts[tokens.layer]), tokens.valid))

    def counts(self, tokens: VisualTokens, cut: int) -> Tensor:
        """How many tokens of every row a cut leaves, (rows,)."""
        arrived = arrived_first(tokens)
        if self.shares is not None:
            return counts_of(self.shares[cut], arrived)
        return counts_by_power(self.keep, arrived, (cut + 1) / len(self.layers or PAPER))


def asking_rows(labels: Tensor) -> Tensor:
    """The rows that ask instead of the last one while a model is trained: the last token before every answer.

    Args:
        labels: (rows, slots), -100 on what is no answer.

    Returns:
        bool, (rows, slots).
    """
    answer = labels != -100
    return ~answer & torch.nn.functional.pad(answer[:, 1:], (0, 1))
