"""Scores that rank visual tokens at decoder layers, for methods that leave the choice to the user."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.methods._inputs import Observation, Pictures, VisualTokens
from vtprune.methods._select import given
from vtprune.methods.aim import importance
from vtprune.methods.transprune import transition


@dataclasses.dataclass(frozen=True)
class Score:
    """How visual tokens are ranked at the input of decoder layers: those with the highest numbers stay.

    Args:
        name: What it is called.
        of: Pure function from what the stage sees to (rows, tokens).
        signals: What it asks for.
        behind: Whether it looks at the layer before; the first decoder layer ranks tokens unlike all others, so that
            nothing is cut right behind it.
        observe: From the layers of the cuts to what is to be noted of layers before.
        before: Where the ranking is made once, at the encoder's output: from `Pictures` to (pictures, tokens), which
            comes as `VisualTokens.marked`.
        before_signals: What that asks for.
    """

    name: str
    of: Callable[[VisualTokens], Tensor]
    signals: frozenset[str] = frozenset()
    behind: bool = False
    observe: Callable[[Sequence[int]], tuple[Observation, ...]] | None = None
    before: Callable[[Pictures], Tensor] | None = None
    before_signals: frozenset[str] = frozenset()


def _attention(signal: str) -> Score:
    return Score(
        signal,
        lambda tokens: given(tokens.attention, "score", signal),
        frozenset({signal}),
        behind=not signal.endswith("_ahead"),
    )


def _page_rank(tokens: VisualTokens) -> Tensor:
    pairs = given(tokens.queries_keys, "score", "queries_keys")
    asking = None if pairs.valid is None else pairs.valid[:, -pairs.queries.shape[2] :]
    ranks = importance(pairs.queries, pairs.keys, pairs.scale, valid=pairs.valid, asking=asking)
    return ranks.gather(1, pairs.at)


def _watched(cuts: Sequence[int]) -> tuple[Observation, ...]:
    layers = tuple(range(min(cuts) - 1, max(cuts)))
    return Observation("self_attn", layers, transition), Observation("mlp", layers, transition)


def _transitions(tokens: VisualTokens) -> Tensor:
    return sum(tokens.observed.values(), torch.zeros(tokens.valid.shape, device=tokens.valid.device))


ScoreName = Literal[
    "text_queries_ahead",
    "last_query_ahead",
    "text_queries",
    "last_query",
    "page_rank",
    "transitions",
    "encoder_attention",
]
SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        *map(_attention, ("text_queries_ahead", "last_query_ahead", "text_queries", "last_query")),
        Score("page_rank", _page_rank, frozenset({"queries_keys"}), behind=True),
        Score("transitions", _transitions, behind=True, observe=_watched),
        Score(
            "encoder_attention",
            lambda tokens: given(tokens.marked, "score", "encoder_attention"),
            before=lambda pictures: given(pictures.attention, "score", "encoder_attention"),
            before_signals=frozenset({"encoder_attention"}),
        ),
    )
}
"""By name: attention that the text behind the picture, or the last token, would pay in the layer that is about to run
("..._ahead"), or paid in the one before; the page rank of `aim`; how much layers changed a token, as in `transprune`;
and the attention of the vision encoder, a ranking that is the same at all layers."""


def score_of(score: str | Score) -> Score:
    """A score by name, or as it is.

    Raises:
        ValueError: There is none of that name.
        TypeError: It is neither.
    """
    if isinstance(score, Score):
        return score
    if not isinstance(score, str):
        raise TypeError(f"score must be one of {', '.join(map(repr, SCORES))} or a Score, got {score!r}.")
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(map(repr, SCORES))} or a Score, got {score!r}.")
    return SCORES[score]
