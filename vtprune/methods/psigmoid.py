"""Lets visual tokens leave from decoder layer to decoder layer along a falling sigmoid that meets a budget.

First layers keep nearly all tokens, last ones nearly none; a score, as a rule the attention that the prompt is about to
pay, says which ones stay. How steep it falls, and what never leaves, can be fitted to a model (`vtprune schedule`).

Paper: "Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction", CVPR 2025,
arXiv 2412.00556 (its P-Sigmoid). Authors' code: none known.
Differs from the paper in: the first layer always gets all tokens, and counts among those that the budget is about;
scores are of the layer that is about to run, unless another is chosen; counts are rounded up; layers that differ by
less than 2 percent of the tokens are cut together. The paper's parametrisation is not known to us in detail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vtprune.methods._ranked import ranked_stages
from vtprune.methods._scores import Score, ScoreName, score_of
from vtprune.methods._select import check_number
from vtprune.methods.base import Method, ModelInfo, Place, Positions, Stage
from vtprune.methods.registry import register
from vtprune.schedules import MERGE, Schedule, centred, sigmoid_rates


@register("psigmoid")
@dataclasses.dataclass(frozen=True)
class PSigmoid(Method):
    """Cuts at decoder layers along a sigmoid, of any score.

    Of n layers the first sees everything, so that `keep` is at least floor + (1 - floor) / n. With a small steepness
    the curve is flat, with a large one a step. Scores are those of `gsearch`.
    """

    kind = "pruning"
    places = (Place.DECODER_LAYER,)
    paper = "P-Sigmoid, CVPR 2025, arXiv 2412.00556"
    cost = "per cut, keys of one decoder layer (N C^2) and T N C for T tokens of text"

    keep: float = 0.5  # share of the visual tokens that a decoder layer sees on average, in (0, 1]
    steepness: float = 8.0  # how fast the curve falls, over the depth of the model, in (0, 1000]
    floor: float = 0.0  # share of the tokens that never leaves, in [0, 1)
    score: ScoreName | Score | None = None  # what ranks tokens, as in gsearch; None: "text_queries_ahead"
    merge: float = MERGE  # layers whose rates differ by less are cut together, in [0, 1]
    positions: Positions = "original"  # position ids after a removal: "original" or "compact"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if isinstance(self.keep, int):
            raise ValueError(
                f"keep must be a ratio in (0, 1] for psigmoid, which counts over layers, got {self.keep} tokens."
            )
        check_number("steepness", self.steepness, 0, 1000, above_low=True)
        check_number("floor", self.floor, 0, 1)
        check_number("merge", self.merge, 0, 1)
        if self.score is not None:
            score_of(self.score)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """Decisions at the input of the layers that get fewer tokens."""
        layers = model.decoder_layers
        if self.keep == 1:
            schedule = Schedule((1.0,) * layers)
        else:
            try:
                centre = centred(self.keep, layers, self.steepness, self.floor, within=self.merge)
            except ValueError as error:
                raise ValueError(f"keep={self.keep:g} is too little for psigmoid: {error}") from None
            schedule = Schedule(sigmoid_rates(layers, self.steepness, centre, self.floor)).merged(self.merge)
        return ranked_stages(self.name, schedule, self.score, self.positions, model)
