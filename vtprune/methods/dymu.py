"""Merges visual tokens inside the vision encoder as far as they resemble one another; simple pictures keep fewer.

Pairs merge whose keys are more similar than a threshold of the block. Thresholds come from a calibration on a few
pictures, so that these lose a given number of tokens on average:

    thresholds = calibrate(model, (processor(...) for ...), keep=0.25)
    save_thresholds("thresholds.json", thresholds)
    vtprune.apply(model, "dymu", thresholds="thresholds.json")

Paper: "DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs", NeurIPS 2025, arXiv 2504.17040. Authors' code:
github.com/MikeWangWZHL/dymu.
Differs from the paper in: its second half, virtual unmerging in the decoder, is left out: the language model reads one
token per group; without `thresholds`, those that the paper has for SigLIP-B are stretched to the encoder's depth, which
is a guess; averages of thresholds are float32, and groups are divided by their exact sizes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vtprune.budget import Budget, token_count
from vtprune.kernels._cosine import live_unit_rows
from vtprune.kernels._shared import first_argmax
from vtprune.methods._select import check_choice, check_number
from vtprune.methods.base import EncoderTokens, Group, Method, ModelInfo, Place, Positions, Stage
from vtprune.methods.registry import register

SIGLIP_B = (0.980, 0.902, 0.875, 0.883, 0.875, 0.883, 0.891, 0.891, 0.883, 0.891, 0.875, 0.875)
Schedule = Literal["constant", "linear", "reverse"]


@register("dymu")
@dataclasses.dataclass(frozen=True)
class DyMU(Method):
    """Merging by calibrated thresholds between attention and MLP of every encoder block; the class token stays alone.

    There is no `keep`: the budget lies in the thresholds, see `calibrate`.
    """

    kind = "merging"
    places = (Place.ENCODER_LAYER,)
    paper = "DyMU, NeurIPS 2025, arXiv 2504.17040"
    cost = "n^2 d / 4 per encoder block"
    adaptive = True

    # Cosine from which pairs merge: one for all blocks, one for each, or a file of them; None: those of SigLIP-B.
    thresholds: float | tuple[float, ...] | str | None = None
    positions: Positions = "auto"  # position ids in the language model: "compact", "original" or "auto" (see `Stage`)

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if isinstance(self.thresholds, Path):
            object.__setattr__(self, "thresholds", str(self.thresholds))
        if isinstance(self.thresholds, Sequence) and not isinstance(self.thresholds, str):
            for value in self.thresholds:
                check_number("thresholds", value, -1, 1)
            object.__setattr__(self, "thresholds", tuple(map(float, self.thresholds)))
        elif self.thresholds is not None and not isinstance(self.thresholds, str):
            check_number("thresholds", self.thresholds, -1, 1)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One merge in every encoder block."""
        layers = model.encoder_layers
        values = load_thresholds(self.thresholds) if isinstance(self.thresholds, str) else self.thresholds
        if isinstance(values, int | float):
            values = (float(values),) * layers
        elif values is None:
            last = len(SIGLIP_B) - 1
            values = tuple(SIGLIP_B[round(last * layer / max(layers - 1, 1))] for layer in range(layers))
        cosines = tuple(values)
        if len(cosines) != layers:
            raise ValueError(f"thresholds must have one value for each of {layers} encoder blocks, got {len(cosines)}.")

        def decide(tokens: EncoderTokens) -> Group | None:
            return merge_above(tokens.keys, cosines[tokens.layer], tokens.sizes > 0, tokens.protected)

        return [
            Stage(
                Place.ENCODER_LAYER,
                decide,
                tuple(range(layers)),
                positions=self.positions,
                proportional=True,
                ragged=True,
            )
        ]


def merge_above(keys: Tensor, threshold: float, valid: Tensor, protected: int = 0) -> Group | None:
    """Merge all pairs whose similarity is above the threshold, the best first, at most half of a picture's patches.

    Args:
        keys: (pictures, tokens, channels).
        threshold: Cosine.
        valid: bool, (pictures, tokens), False on padding behind the tokens.
        protected: 1 if token 0 stays alone.
    """
    likeness, partner = nearest_pairs(keys, valid, protected)
    rank = likeness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    most = (valid.sum(1, keepdim=True) - protected) // 2
    return pairs_group(likeness, partner, (likeness > threshold) & (rank < most), valid, protected)


def nearest_pairs(keys: Tensor, valid: Tensor, protected: int = 0) -> tuple[Tensor, Tensor]:
    """For tokens at even places the most similar one at odd places: cosine and its index among those.

    Both (pictures, ceil(tokens / 2)); the cosine is minus infinity where there is none, and for the protected token.
    """
    unit, live = live_unit_rows(keys, valid)
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    similarity = similarity.masked_fill(~live[:, None, 1::2] | ~live[:, ::2, None], -torch.inf)
    if similarity.shape[2] == 0:
        nothing = similarity.new_full(similarity.shape[:2], -torch.inf)
        return nothing, torch.zeros_like(nothing, dtype=torch.int64)
    likeness, partner = first_argmax(similarity)
    likeness[:, :protected] = -torch.inf
    return likeness, partner


def pairs_group(likeness: Tensor, partner: Tensor, merged: Tensor, valid: Tensor, protected: int = 0) -> Group | None:
    """The decision that merges the marked pairs; None if no picture has any.

    Groups: even places that stay alone, by falling similarity, or ascending with a class token; then the odd ones.
    """
    if not bool(merged.any()):
        return None
    even, odd = valid[:, ::2], valid[:, 1::2]
    alone = even & ~merged
    if protected:
        place = alone.cumsum(1) - 1
    else:
        # Those that merge, and padding, sort behind; equal similarities keep their order.
        order = likeness.masked_fill(~alone, -torch.inf).argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, alone.gather(1, order).logical_not().to(torch.int8).argsort(dim=1, stable=True))
        place = order.argsort(dim=1)
    count = alone.sum(1, keepdim=True)
    group_of_odd = count + odd.cumsum(1) - 1
    owner = torch.zeros(valid.shape, dtype=torch.int64, device=valid.device)
    owner[:, 1::2] = group_of_odd
    owner[:, ::2] = torch.where(merged, group_of_odd.gather(1, partner), place)
    # A picture without pairs is left as it is, alone or in a batch.
    untouched = torch.arange(valid.shape[1], device=valid.device).expand_as(owner)
    owner = torch.where(merged.any(1, keepdim=True), owner, untouched).masked_fill(~valid, 0)
    return Group(owner, int((count + odd.sum(1, keepdim=True)).max()), ragged=True)


def removals(total: int, layers: int, schedule: Schedule = "constant") -> tuple[int, ...]:
    """How many tokens each block removes on average during the calibration, `total` in all."""
    check_choice("schedule", schedule, ("constant", "linear", "reverse"))
    if schedule == "constant":
        return tuple(total // layers + (layer < total % layers) for layer in range(layers))
    first = 2 * total // layers
    found: list[int] = []
    for layer in range(layers):
        found.append(min(max(int(first - layer * first / layers), 0), total - sum(found)))
    return tuple(found if schedule == "linear" else reversed(found))


def pooled_threshold(likeness: Tensor, removed: int) -> tuple[float, Tensor]:
    """The threshold that a batch of pictures asks for, and the pairs above it: bool, like `likeness`.

    Args:
        likeness: Of `nearest_pairs`.
        removed: Pairs per picture that merge on average.
    """
    pool = likeness.flatten()
    order = pool.argsort(descending=True, stable=True)
    count = removed * len(likeness)
    threshold = float(pool[order[min(count, len(order) - 1)]].clamp_min(0))
    merged = torch.zeros_like(pool, dtype=torch.bool)
    merged[order[:count]] = True
    return threshold, merged.view_as(likeness) & likeness.isfinite()


class Calibration(Method):
    """Merges the best pairs of each batch as a whole, and remembers the mean of the thresholds that this took."""

    name = "dymu"
    kind = "merging"
    places = (Place.ENCODER_LAYER,)

    def __init__(self, keep: Budget, schedule: Schedule) -> None:
        self.keep, self.schedule = keep, schedule
        self.__post_init__()
        self.sums: list[float] = []
        self.batches: list[int] = []

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Their means so far, per block."""
        return tuple(x / n for x, n in zip(self.sums, self.batches, strict=True))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """As those of `DyMU`."""
        layers = model.encoder_layers
        self.sums, self.batches = [0.0] * layers, [0] * layers
        place = Place.ENCODER_LAYER
        return [Stage(place, self.decide, tuple(range(layers)), proportional=True, ragged=True)]

    def decide(self, tokens: EncoderTokens) -> Group | None:
        """Take the threshold of this batch and merge what is above."""
        layer, valid = tokens.layer, tokens.sizes > 0
        total = tokens.patches - token_count(self.keep, tokens.patches)
        likeness, partner = nearest_pairs(tokens.keys, valid, tokens.protected)
        threshold, merged = pooled_threshold(likeness, removals(total, len(self.sums), self.schedule)[layer])
        self.sums[layer] += threshold
        self.batches[layer] += 1
        return pairs_group(likeness, partner, merged, valid, tokens.protected)


@torch.no_grad()
def calibrate(
    model: Any, batches: Iterable[Mapping[str, Any]], *, keep: Budget = 0.25, schedule: Schedule = "constant"
) -> tuple[float, ...]:
    """Find thresholds that leave `keep` of the patches on average over the given pictures.

    Args:
        model: As for `vtprune.apply`, without methods.
        batches: Inputs of the model with pictures, as its processor makes them; a few dozen different pictures in
            batches of several are a start, the paper takes 256,000.
        keep: Ratio in (0, 1], or patches per picture.
        schedule: Whether all blocks merge as much, or early ones more ("linear"), or late ones ("reverse").

    Returns:
        One threshold per encoder block that is used.

    Raises:
        ValueError: There is no picture in the batches.
    """
    import vtprune

    calibration = Calibration(keep, schedule)
    with vtprune.applied(model, calibration):
        for batch in batches:
            model(**batch)
    if not all(calibration.batches):
        raise ValueError("batches must hold pictures to calibrate on, got none.")
    return calibration.thresholds


def save_thresholds(path: str | Path, thresholds: Sequence[float]) -> None:
    """Write thresholds to a small JSON file."""
    Path(path).write_text(json.dumps({"method": "dymu", "thresholds": list(thresholds)}, indent=1) + "\n")


def load_thresholds(path: str | Path) -> tuple[float, ...]:
    """Read what `save_thresholds` wrote.

    Raises:
        ValueError: The file holds something else.
    """
    try:
        found = json.loads(Path(path).read_text())
        return tuple(float(x) for x in found["thresholds"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"thresholds must be a file written by save_thresholds, got {str(path)!r}: {error}."
        ) from error
