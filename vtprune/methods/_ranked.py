"""What a schedule and a score make of a prompt: at every cut, as many of the best tokens stay as the schedule says."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtprune.methods._cuts import arrived_first
from vtprune.methods._scores import SCORES, Score, ScoreName, score_of
from vtprune.methods._select import top_k_mask
from vtprune.methods.base import Keep, ModelInfo, Pictures, Place, Positions, Stage, VisualTokens

if TYPE_CHECKING:
    from vtprune.schedules import Schedule

DEFAULT: ScoreName = "text_queries_ahead"


def ranked_stages(
    name: str, schedule: Schedule, score: ScoreName | Score | None, positions: Positions, model: ModelInfo
) -> Sequence[Stage]:
    """Stages of a method that carries a schedule out.

    Args:
        name: The method.
        schedule: Its schedule, merged.
        score: What ranks tokens; None: what the schedule was found with, else `DEFAULT`.
        positions: Position rule.
        model: The model.

    Raises:
        ValueError: Schedule or score do not fit the model.
    """
    if len(schedule.rates) != model.decoder_layers:
        raise ValueError(
            f"{name}: the schedule has rates for {len(schedule.rates)} decoder layers, and this model has "
            f"{model.decoder_layers}; search one for it (vtprune schedule)."
        )
    chosen = score_of(score or schedule.score or DEFAULT)
    cuts = schedule.cuts()
    ranked = tuple(layer for layer, rate in cuts.items() if rate > 0)
    if not cuts:  # everything stays
        return [Stage(Place.DECODER_LAYER, lambda tokens: None, (model.decoder_layers - 1,), positions=positions)]
    if chosen.behind and 1 in ranked:
        ahead = ", ".join(name for name, one in SCORES.items() if not one.behind)
        raise ValueError(
            f"{name}: score {chosen.name!r} would rank tokens by the first decoder layer, which ranks them unlike all "
            f"others; begin at layer 2, or use a score that looks elsewhere ({ahead})."
        )
    stages = []
    if chosen.before is not None and ranked:
        rank = functools.partial(_marked, before=chosen.before)
        stages.append(Stage(Place.ENCODER_OUTPUT, rank, signals=frozenset(chosen.before_signals), positions=positions))
    if ranked:
        decide = functools.partial(keep_best, cuts=cuts, score=chosen)
        noted = chosen.observe(ranked) if chosen.observe else ()
        signals = frozenset(chosen.signals)
        stages.append(Stage(Place.DECODER_LAYER, decide, ranked, signals, positions, observations=noted))
    if gone := tuple(layer for layer in cuts if layer not in ranked):
        stages.append(Stage(Place.DECODER_LAYER, _none, gone, positions=positions))
    return stages


def keep_best(tokens: VisualTokens, cuts: Mapping[int, float], score: Score) -> Keep:
    """Keep the share of the first tokens that a cut leaves, the best of all pictures of a row together."""
    counts = counts_by_rate(arrived_first(tokens).sum(1), cuts[tokens.layer])
    return Keep(top_k_mask(score.of(tokens).float(), counts, tokens.valid))


def counts_by_rate(arrived: Tensor, rate: float) -> Tensor:
    """How many of so many tokens (rows,) a rate is, rounded up."""
    return (arrived.double() * rate - 1e-6).ceil().long()


def _marked(pictures: Pictures, before: object) -> Keep:
    if not callable(before):
        raise TypeError(f"a ranking must be a function, got {before!r}.")
    scores = before(pictures)
    return Keep(torch.ones_like(scores, dtype=torch.bool), marked=scores)


def _none(tokens: VisualTokens) -> Keep:
    return Keep(torch.zeros_like(tokens.valid))
