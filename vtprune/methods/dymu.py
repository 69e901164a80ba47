"""Merges visual tokens inside the vision encoder as far as they resemble one another; simple pictures keep fewer.

Pairs merge whose keys are more similar than a threshold of the block. Thresholds come from a calibration on a few
pictures, so that these lose a given number of tokens on average (`vtprune.calibration`, docs/dymu.md).

With `unmerge`, the paper's way, merged tokens stay on their slots of the prompt and share a hidden state: the language
model attends to all of them at their positions, and its cache holds them all; norms, projections and MLPs run once per
group. Without, one token per group enters: attention and cache get smaller too, and positions fall away.

Paper: "DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs", NeurIPS 2025, arXiv 2504.17040. Authors' code:
github.com/MikeWangWZHL/dymu.
Differs from the paper in: without `thresholds`, those that the paper has for SigLIP-B are stretched to the encoder's
depth, which is a guess; the prompt keeps the layout that the model gives tiles, with newlines and without padding;
averages of thresholds are float32, and groups are divided by their exact sizes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vtprune.kernels._cosine import live_unit_rows
from vtprune.kernels._shared import first_argmax
from vtprune.methods._select import check_choice, check_number, check_whole_numbers
from vtprune.methods.base import EncoderTokens, Group, Method, ModelInfo, Place, Positions, Stage
from vtprune.methods.registry import register

SIGLIP_B = (0.980, 0.902, 0.875, 0.883, 0.875, 0.883, 0.891, 0.891, 0.883, 0.891, 0.875, 0.875)
Schedule = Literal["constant", "linear", "reverse"]


@register("dymu")
@dataclasses.dataclass(frozen=True)
class DyMU(Method):
    """Merging by calibrated thresholds between attention and MLP of every encoder block; the class token stays alone.

    There is no `keep`: the budget lies in the thresholds.
    """

    kind = "merging"
    places = (Place.ENCODER_LAYER,)
    paper = "DyMU, NeurIPS 2025, arXiv 2504.17040"
    cost = "n^2 d / 4 per encoder block"
    adaptive = True

    # Cosine above which pairs merge: one for all blocks, one for each (None where a block merges nothing), or a file of
    # them; without any, those of SigLIP-B.
    thresholds: float | tuple[float | None, ...] | str | None = None
    unmerge: bool = True  # merged tokens share a hidden state in the language model instead of leaving it
    max_merges: int | None = None  # pairs per picture and block at most, beside the half of its patches that may merge
    positions: Positions = "auto"  # position ids without `unmerge`: "compact", "original" or "auto" (see `Stage`)

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if isinstance(self.thresholds, Path):
            object.__setattr__(self, "thresholds", str(self.thresholds))
        if isinstance(self.thresholds, Sequence) and not isinstance(self.thresholds, str):
            for value in self.thresholds:
                if value is not None:
                    check_number("thresholds", value, -1, 1)
            object.__setattr__(self, "thresholds", tuple(x if x is None else float(x) for x in self.thresholds))
        elif self.thresholds is not None and not isinstance(self.thresholds, str):
            check_number("thresholds", self.thresholds, -1, 1)
        if not isinstance(self.unmerge, bool):
            raise TypeError(f"unmerge must be True or False, got {self.unmerge!r}.")
        if self.max_merges is not None:
            check_whole_numbers("max_merges", (self.max_merges,), least=0)

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
            cosine = cosines[tokens.layer]
            if cosine is None:
                return None
            return merge_above(tokens.keys, cosine, tokens.sizes > 0, tokens.protected, self.max_merges)

        return [
            Stage(
                Place.ENCODER_LAYER,
                decide,
                tuple(range(layers)),
                positions=self.positions,
                proportional=True,
                ragged=True,
                shares=self.unmerge,
            )
        ]


def merge_above(
    keys: Tensor, threshold: float, valid: Tensor, protected: int = 0, most: int | None = None
) -> Group | None:
    """Merge all pairs whose similarity is above the threshold, the best first, at most half of a picture's patches.

    Args:
        keys: (pictures, tokens, channels).
        threshold: Cosine.
        valid: bool, (pictures, tokens), False on padding behind the tokens.
        protected: 1 if token 0 stays alone.
        most: Merge no more pairs of a picture than this.
    """
    likeness, partner = nearest_pairs(keys, valid, protected)
    rank = likeness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    limit = (valid.sum(1, keepdim=True) - protected) // 2
    if most is not None:
        limit = limit.clamp_max(most)
    return pairs_group(likeness, partner, (likeness > threshold) & (rank < limit), valid, protected)


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


def save_thresholds(path: str | Path, thresholds: Sequence[float | None]) -> None:
    """Write thresholds to a small JSON file."""
    Path(path).write_text(json.dumps({"method": "dymu", "thresholds": list(thresholds)}, indent=1) + "\n")


def load_thresholds(path: str | Path) -> tuple[float | None, ...]:
    """Read what `save_thresholds` wrote.

    Raises:
        ValueError: The file holds something else.
    """
    try:
        found = json.loads(Path(path).read_text())["thresholds"]
        for value in found:
            if value is not None:
                check_number("thresholds", value, -1, 1)
        return tuple(x if x is None else float(x) for x in found)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"thresholds must be a file written by save_thresholds, got {str(path)!r}: {error}."
        ) from error
