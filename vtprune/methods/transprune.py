"""Keeps visual tokens that decoder layers change a lot, and that the instruction is about to look at.

How much a layer changes a token is measured on its attention and on its MLP: by how much longer the output is than the
input, times how far it turns away from it. Such transitions add up over a few middle layers; at each cut, they and the
attention that the text after the picture would pay in the next layer count the same.

Paper: "TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model", CVPR 2026, arXiv 2507.20630.
Authors' code: github.com/liaolea/TransPrune.
Differs from the paper in: the turns of a layer are weighed against those of the row's own tokens without padding
(there: all of the batch); layers are at the same relative depth of any model; counts are rounded to the nearest number
(there down) and never 0; everything is float32; several pictures in a row compete for the sum of their budgets; on
models with three coordinates per position, ids stay by default.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._cuts import arrived_first, check_cuts, counts_by_line, counts_of, cuts_at
from vtprune.methods._select import check_number, check_whole_numbers, given, top_k_mask
from vtprune.methods.base import (
    Keep,
    Method,
    ModelInfo,
    Observation,
    Place,
    Positions,
    Stage,
    VisualTokens,
    check_layer,
)
from vtprune.methods.registry import register

PAPER = (7, 9, 12)
DONE = (1 / 7, 3 / 7, 1.0)  # share of those that leave in all that have left behind each cut of the paper
EPS = 1e-8


@register("transprune")
@dataclasses.dataclass(frozen=True)
class TransPrune(Method):
    """Cuts at several decoder layers by transitions and by the attention of the instruction.

    Of all tokens that leave, a seventh does so at the first cut, two sevenths at the second one, the rest at the third
    one, as in the paper's preset of 0.875, 0.625 and 0.125.
    """

    kind = "pruning"
    places = (Place.DECODER_LAYER,)
    paper = "TransPrune, CVPR 2026, arXiv 2507.20630"
    cost = "4 N C per watched layer; per cut, keys of one decoder layer (N C^2) and T N C for T tokens of text"

    keep: Budget = 0.125  # ratio in (0, 1] or tokens per picture behind the last cut
    layers: tuple[int, ...] | None = None  # first layers with fewer tokens, ascending, >= 1; None: as in the paper
    shares: tuple[Budget, ...] | None = None  # what each cut leaves of each picture; None: follows from `keep`
    watched: tuple[int, ...] | None = (
        None  # layers whose transitions add up; None: from before the first cut to the last
    )
    guidance: float = 1.0  # weight of the instruction's attention, >= 0; 0: transitions alone, no attention is computed
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        layers, shares = check_cuts(self.layers, self.shares, len(PAPER))
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "shares", shares)
        check_number("guidance", self.guidance, 0, 1e6)
        if self.watched is not None:
            watched = check_whole_numbers("watched", self.watched, least=0)
            object.__setattr__(self, "watched", (watched,) if isinstance(watched, int) else watched)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One decision at the input of several decoder layers, and notes about layers before."""
        cuts = cuts_at(self.layers, PAPER, model.decoder_layers)
        watched = tuple(range(min(cuts) - 1, max(cuts))) if self.watched is None else self.watched
        for layer in watched:
            check_layer("watched", layer, 0, model.decoder_layers - 1)
        return [
            Stage(
                Place.DECODER_LAYER,
                functools.partial(self.decide, cuts=cuts),
                tuple(cuts),
                frozenset({"text_queries_ahead"} if self.guidance else ()),
                positions=self.positions,
                observations=(Observation("self_attn", watched, transition), Observation("mlp", watched, transition)),
            )
        ]

    def decide(self, tokens: VisualTokens, cuts: Mapping[int, int]) -> Keep:
        """Keep the tokens with the highest scores, over all pictures of a row together."""
        attention = given(tokens.attention, self.name, "text_queries_ahead") if self.guidance else None
        transitions = sum(tokens.observed.values(), torch.zeros(tokens.valid.shape, device=tokens.valid.device))
        ranks = score(transitions.to(tokens.valid.device), attention, tokens.valid, self.guidance)
        return Keep(top_k_mask(ranks, self.counts(tokens, cuts[tokens.layer]), tokens.valid))

    def counts(self, tokens: VisualTokens, cut: int) -> Tensor:
        """How many tokens of every row a cut leaves, (rows,)."""
        arrived = arrived_first(tokens)
        if self.shares is not None:
            return counts_of(self.shares[cut], arrived)
        done = DONE if self.layers is None else [(i + 1) / len(self.layers) for i in range(len(self.layers))]
        return counts_by_line(self.keep, arrived, done[cut])


def transition(before: Tensor, after: Tensor, valid: Tensor | None = None) -> Tensor:
    """How much a part of a layer changes every slot, (rows, slots), float32; anything on padding.

    Args:
        before: (rows, slots, width), the part's input.
        after: (rows, slots, width), its output, before anything is added to it.
        valid: bool, (rows, slots), False on padding; None without.
    """
    before, after = before.detach().float(), after.detach().float()
    turn = (1 - F.cosine_similarity(before, after, dim=-1, eps=EPS)).exp()
    total = (turn if valid is None else turn.masked_fill(~valid, 0)).sum(1, keepdim=True)
    return after.norm(dim=-1) / before.norm(dim=-1) * turn / total


def score(transitions: Tensor, attention: Tensor | None, valid: Tensor, guidance: float = 1.0) -> Tensor:
    """What visual tokens are ranked by, (rows, tokens): both parts as shares of their sums over the row.

    Args:
        transitions: (rows, tokens), added up over layers.
        attention: (rows, tokens), from the instruction; None for transitions alone.
        valid: bool, (rows, tokens), False on padding.
        guidance: Weight of the attention.
    """
    found = _shares(transitions, valid)
    return found if attention is None else found + guidance * _shares(attention.to(found.device), valid)


def _shares(x: Tensor, valid: Tensor) -> Tensor:
    x = x.masked_fill(~valid, 0)
    return x / (x.sum(1, keepdim=True) + EPS)
