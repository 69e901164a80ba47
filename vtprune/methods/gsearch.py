"""Lets visual tokens leave from decoder layer to decoder layer by a table that was searched for the model.

The table says which share of the tokens enters each layer; a score, as a rule the attention that the prompt is about to
pay, says which ones. `vtprune schedule` finds tables: the fewest tokens without a loss, layer by layer (the paper's
G-Search), or the best sigmoid at a budget (its P-Sigmoid).

Paper: "Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction", CVPR 2025,
arXiv 2412.00556. Authors' code: none known.
Differs from the paper in: scores are of the layer that is about to run, unless another is chosen; counts are rounded
up; layers that differ by less than 2 percent of the tokens are cut together.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from vtprune.methods._ranked import ranked_stages
from vtprune.methods._scores import Score, ScoreName, score_of
from vtprune.methods._select import check_number
from vtprune.methods.base import Method, ModelInfo, Place, Positions, Stage
from vtprune.methods.registry import register
from vtprune.schedules import MERGE, Schedule, ramp_rates


@register("gsearch")
@dataclasses.dataclass(frozen=True)
class GSearch(Method):
    """Cuts at decoder layers by a schedule, of any score.

    A schedule is a file, a `vtprune.schedules.Schedule`, or rates, one per decoder layer: (1, 1, 0.5, 0.5, 0.1, 0).
    Without one it is the straight line from all tokens at the first layer to none behind the last, which has seen no
    search. Names of scores: text_queries_ahead, last_query_ahead, text_queries, last_query, page_rank, transitions,
    encoder_attention.
    """

    kind = "pruning"
    places = (Place.DECODER_LAYER,)
    paper = "G-Search, CVPR 2025, arXiv 2412.00556"
    cost = "per cut, keys of one decoder layer (N C^2) and T N C for T tokens of text"

    schedule: str | Schedule | tuple[float, ...] | None = None  # file, or rates per decoder layer; None: a line
    score: ScoreName | Score | None = None  # what ranks tokens; None: as the file says, else "text_queries_ahead"
    merge: float = MERGE  # layers whose rates differ by less are cut together, in [0, 1]
    positions: Positions = "original"  # position ids after a removal: "original" or "compact"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("merge", self.merge, 0, 1)
        if self.score is not None:
            score_of(self.score)
        if isinstance(self.schedule, os.PathLike):
            object.__setattr__(self, "schedule", os.fspath(self.schedule))
        if isinstance(self.schedule, Sequence) and not isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", Schedule(tuple(self.schedule)).rates)
        elif not isinstance(self.schedule, str | Schedule | None):
            raise TypeError(f"schedule must be a file, a Schedule or rates, got {self.schedule!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """Decisions at the input of the layers that get fewer tokens."""
        schedule = self.schedule
        if isinstance(schedule, str):
            schedule = Schedule.load(schedule)
        elif not isinstance(schedule, Schedule):
            schedule = Schedule(ramp_rates(model.decoder_layers) if schedule is None else schedule)
        return ranked_stages(self.name, schedule.merged(self.merge), self.score, self.positions, model)
