"""Merges the same number of look-alike visual tokens in every block of a SigLIP encoder, for pictures of many pixels.

Pairs of similar keys become their mean, weighed by size, and attention counts a merged token as often as the patches
that it stands for.

Paper: "TinyChart: Efficient Chart Understanding with Visual Token Merging and Program-of-Thoughts Learning",
EMNLP 2024, arXiv 2404.16635. Authors' code: github.com/X-PLUG/mPLUG-DocOwl (TinyChart).
Differs from the paper in: there the model is trained with the merging, which this is not; `keep` names the patches left
at the end, and merges are spread evenly from it; encoders with a class token leave that alone, which is plain `tome`;
groups enter the language model in the order of their first patch; equal similarities, common on white paper, are
decided by the lower index.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from vtprune.budget import Budget, token_count
from vtprune.methods._select import check_whole_numbers
from vtprune.methods.base import EncoderTokens, Group, Method, ModelInfo, Place, Positions, Stage
from vtprune.methods.registry import register
from vtprune.methods.tome import even_schedule, merge_step


@register("tinychart")
@dataclasses.dataclass(frozen=True)
class TinyChart(Method):
    """ToMe with a constant number of merges. The paper's: r=84 of 2916 patches (768 pixels), r=20 of 1296 (512)."""

    kind = "merging"
    places = (Place.ENCODER_LAYER,)
    paper = "TinyChart, EMNLP 2024, arXiv 2404.16635"
    cost = "n^2 d / 4 per encoder block"

    keep: Budget = 0.25  # ratio in (0, 1] or patches per picture after the last block; without effect once `r` is given
    r: int | None = None  # merges in every block, as in the paper; at most half of what arrives
    positions: Positions = "compact"  # position ids in the language model, as in the paper; "original" or "auto"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.r is not None and not isinstance(check_whole_numbers("r", self.r, least=0), int):
            raise TypeError(f"r must be one whole number, got {self.r!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One merge in every encoder block, with attention weighed by size."""
        if self.r is None and model.patches is not None:
            even_schedule(model.patches, token_count(self.keep, model.patches), model.encoder_layers)
        decide = functools.partial(self.decide, layers=model.encoder_layers)
        layers = tuple(range(model.encoder_layers))
        return [Stage(Place.ENCODER_LAYER, decide, layers, positions=self.positions, proportional=True)]

    def decide(self, tokens: EncoderTokens, layers: int) -> Group | None:
        """Merge the most similar pairs of this block."""
        merges = self.r
        if merges is None:
            merges = even_schedule(tokens.patches, token_count(self.keep, tokens.patches), layers)[tokens.layer]
        merges = min(merges, (tokens.keys.shape[1] - tokens.protected) // 2)
        return merge_step(tokens.keys, merges, tokens.protected) if merges > 0 else None
