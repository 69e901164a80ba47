"""What a method may learn from a few pictures before it is used: no labels, no gradients, no change to the model.

thresholds = dymu_thresholds(model, [processor(...), processor(...)], keep=0.25)
save_thresholds("thresholds.json", thresholds)
vtprune.apply(model, "dymu", thresholds="thresholds.json")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from vtprune.api import applied
from vtprune.budget import Budget, token_count
from vtprune.methods.base import EncoderTokens, Group, Method, ModelInfo, Place, Stage
from vtprune.methods.dymu import (
    Schedule,
    load_thresholds,
    nearest_pairs,
    pairs_group,
    pooled_threshold,
    removals,
    save_thresholds,
)

__all__ = ["DyMUCalibration", "dymu_thresholds", "load_thresholds", "save_thresholds"]


@torch.no_grad()
def dymu_thresholds(
    model: Any, batches: Iterable[Mapping[str, Any]], *, keep: Budget = 0.25, schedule: Schedule = "constant"
) -> tuple[float | None, ...]:
    """Find thresholds for `dymu` that leave `keep` of the patches on average over the given pictures.

    A batch's best pairs merge, wherever they are, as many as the schedule has for a block; its threshold is the most
    similar pair that does not. Blocks follow one another, each on what the earlier ones left, and thresholds are means
    over the batches.

    Args:
        model: As for `vtprune.apply`; what is applied to it is set aside meanwhile.
        batches: Inputs of the model with pictures, as its processor makes them; a few dozen different pictures in
            batches of several are a start, the paper takes 256,000. The pictures of a batch share its threshold, so
            batches should be mixed.
        keep: Ratio in (0, 1], or patches per picture or tile.
        schedule: Whether all blocks merge as much, or early ones more ("linear"), or late ones ("reverse").

    Returns:
        One threshold per encoder block that is used; None for a block that is to merge nothing.

    Raises:
        ValueError: There is no picture in the batches, `dymu` does not fit the model, or a block would have to merge
            more than half of its patches.
    """
    calibration = DyMUCalibration(keep, schedule)
    with applied(model, calibration):
        for batch in batches:
            model(**batch)
    if not calibration.means or None in calibration.means:
        raise ValueError("batches must hold pictures to calibrate on, got none.")
    return calibration.thresholds


class DyMUCalibration(Method):
    """Merges the best pairs of each batch as a whole, and remembers the mean of the thresholds that this took.

    Attributes:
        latest: The threshold that the latest batch took, per block.
        means: Their mean so far; None before the first one.
    """

    name = "dymu"
    kind = "merging"
    places = (Place.ENCODER_LAYER,)

    def __init__(self, keep: Budget, schedule: Schedule = "constant") -> None:
        self.keep, self.schedule = keep, schedule
        self.__post_init__()
        self.latest: list[float | None] = []
        self.means: list[float | None] = []
        self.batches: list[int] = []
        self.merging: tuple[int, ...] = ()  # pairs per picture and block, on average

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        """The means, and None for blocks in which nothing is to merge."""
        return tuple(mean if pairs else None for mean, pairs in zip(self.means, self.merging, strict=True))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """As those of `dymu`, without sharing: what the language model makes of it does not matter."""
        layers = model.encoder_layers
        self.latest, self.means, self.batches = [None] * layers, [None] * layers, [0] * layers
        return [Stage(Place.ENCODER_LAYER, self.decide, tuple(range(layers)), proportional=True, ragged=True)]

    def decide(self, tokens: EncoderTokens) -> Group | None:
        """Take the threshold of this batch and merge what is above."""
        layer, valid = tokens.layer, tokens.sizes > 0
        total = tokens.patches - token_count(self.keep, tokens.patches)
        self.merging = removals(total, len(self.means), self.schedule)
        arriving, pairs = tokens.patches - sum(self.merging[:layer]), self.merging[layer]
        if pairs > arriving // 2:
            raise ValueError(
                f"keep={self.keep!r} leaves {tokens.patches - total} of {tokens.patches} patches, for which block "
                f"{layer} would have to merge {pairs} of {arriving}, and at most half can; raise keep, or choose "
                "another schedule."
            )
        likeness, partner = nearest_pairs(tokens.keys, valid, tokens.protected)
        threshold, merged = pooled_threshold(likeness, self.merging[layer])
        mean, count = self.means[layer] or 0.0, self.batches[layer]
        self.latest[layer] = threshold
        self.means[layer] = (mean * count + threshold) / (count + 1)
        self.batches[layer] = count + 1
        return pairs_group(likeness, partner, merged, valid, tokens.protected)
