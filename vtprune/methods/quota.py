"""Shares a budget among the frames of a video by what they have to do with the question, and resamples each of them.

Frames that match the question's words better get larger shares; every frame is made smaller by interpolation, so that
its tokens are new.

Paper: "QuoTA: Query-oriented Token Assignment via CoT Query Decouple for Long Video Comprehension", arXiv 2503.08689.
Authors' code: github.com/MAC-AutoML/QuoTA.
Differs from the paper in: frames are scored by any function, the built-in one compares the model's own embeddings of
text and frames (there: a second model that is asked about each frame, with the objects that the first one finds in the
question); frames are resampled as they stand in the prompt, behind the model's own pooling (there: before it), so none
gets more tokens than it has; new tokens stand at the slots nearest to them; equal scores where all are zero. Pictures
are left as they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget
from vtprune.kernels._shared import full_precision, unit_rows
from vtprune.methods._frames import frames_of
from vtprune.methods._select import check_choice, check_number, given
from vtprune.methods.aim import halvings, merge, merge_rounds, places
from vtprune.methods.base import Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register

Resample = Literal["bilinear", "average", "pick", "merge", "merge_axes"]


@register("quota")
@dataclasses.dataclass(frozen=True)
class QuoTA(Method):
    """Frame budgets from the query, at the encoder's output.

    Shares are rounded down, and to rectangles, so that a video keeps somewhat less than the budget.
    """

    kind = "merging"
    places = (Place.ENCODER_OUTPUT,)
    paper = "QuoTA, arXiv 2503.08689"
    cost = "N T C for the scores of frames"
    needs_text = True
    needs_video = True
    adaptive = True

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per video; the paper has 12544 for any number of frames
    resample: Resample = "bilinear"  # the paper's versions 1 to 5, in this order
    exponent: float = 2.0  # of scores before they become shares, >= 0
    cap: bool = True  # hand on what a frame cannot hold (the paper's versions 2 to 5), or let it go (version 1)
    scorer: Callable[[Pictures, int], Tensor] | None = None  # (videos, number of frames) to scores >= 0; None: built in
    positions: Positions = "auto"  # position ids after the removal: "original", "compact" or "auto"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("resample", self.resample, ("bilinear", "average", "pick", "merge", "merge_axes"))
        check_number("exponent", self.exponent, 0, 100)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One replacement at the encoder's output."""
        signals = frozenset({"projected", "text"})
        return [
            Stage(
                Place.ENCODER_OUTPUT,
                self.decide,
                signals=signals,
                positions=self.positions,
                needs_all=True,
                mixes=True,
            )
        ]

    def decide(self, pictures: Pictures) -> Keep | None:
        """Resample every frame to its share."""
        frames, tokens, count = frames_of(pictures, self.name), pictures.tokens, pictures.count(self.keep)
        if frames == 1 or pictures.grid is None or count >= tokens:
            return None
        grid, size = pictures.grid[1:], tokens // frames
        x = given(pictures.projected, self.name, "projected").detach()
        scores = (self.scorer or text_scores)(pictures, frames)
        if scores.shape != (len(x), frames) or bool((scores < 0).any()):
            raise ValueError(
                f"{self.name}: scorer must return {len(x)} x {frames} (videos x frames) scores >= 0, got a tensor of "
                f"shape {tuple(scores.shape)}{' with negative ones' if (scores < 0).any() else ''}."
            )
        plans: list[list[Plan | None]] = []
        for video, row in zip(x.unflatten(1, (frames, -1)), relative(scores), strict=True):
            weights = shares([score**self.exponent for score in row], size / count if self.cap else math.inf)
            counts = [min(int(count * weight), size) for weight in weights]
            if not any(counts):
                counts[weights.index(max(weights))] = 1
            plans.append([plan(x, grid, n, self.resample) if n else None for x, n in zip(video, counts, strict=True)])
        mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        owner = torch.arange(tokens, device=x.device).repeat(len(x), 1)
        for v, f, one in _planned(plans):
            start = f * size
            mask[v, start + one.where] = True
            owner[v, start : start + size] = start + one.owner

        def mix(x: Tensor) -> Tensor:
            videos = x.unflatten(1, (frames, -1))
            new = x.unflatten(1, (frames, -1)).clone()
            for v, f, one in _planned(plans):
                new[v, f, one.where] = one.make(videos[v, f]).to(x.dtype)
            return new.flatten(1, 2)

        return Keep(mask, mix, owner)


def text_scores(pictures: Pictures, frames: int) -> Tensor:
    """How well the best token of a frame matches each token of the text, on average: (videos, frames), cosines >= 0."""
    visual = unit_rows(given(pictures.projected, "quota", "projected"))
    text, valid = given(pictures.text, "quota", "text"), given(pictures.text_valid, "quota", "text")
    with full_precision(visual):
        best = (visual @ unit_rows(text).transpose(1, 2)).unflatten(1, (frames, -1)).amax(2)  # (videos, frames, n)
    return ((best * valid.unsqueeze(1)).sum(2) / valid.sum(1, keepdim=True).clamp_min(1)).clamp_min(0)


def relative(scores: Tensor) -> list[list[float]]:
    """Scores (videos, frames) as shares of a video's largest one, of which no power overflows; 0 for NaN."""
    scores = scores.detach().double().nan_to_num(nan=0.0)
    largest = scores.amax(1, keepdim=True)
    found: list[list[float]] = torch.where(largest > 0, scores / largest, 0.0).tolist()
    return found


def shares(weights: Sequence[float], most: float) -> list[float]:
    """Weights as shares of the budget, none above `most`: the others get what is too much, in order and by weight.

    As in the authors' code the shares may then add up to less than 1, and later frames get more of what is left over.
    """
    total = sum(weights)
    parts = [w / total for w in weights] if total > 0 else [1 / len(weights)] * len(weights)
    excess = sum(max(part - most, 0.0) for part in parts)
    if not excess:
        return parts
    parts = [min(part, most) for part in parts]
    total = sum(parts)
    for i, part in enumerate(parts):
        if part < most:
            grown = part + part / total * excess
            excess += max(grown - most, 0.0)
            parts[i] = min(grown, most)
    return parts


def fit(count: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the grid of the same shape, with a row or a column more if that fits, of `count` cells."""
    rows = max(int(math.sqrt(count * grid[0] / grid[1])), 1)
    columns = max(int(math.sqrt(count * grid[1] / grid[0])), 1)
    rows, columns = min(rows, count), min(columns, count // min(rows, count))
    if (rows + 1) * columns <= count:
        return rows + 1, columns
    return (rows, columns + 1) if rows * (columns + 1) <= count else (rows, columns)


class Plan(NamedTuple):
    """How one frame becomes smaller.

    Attributes:
        make: From features (tokens, channels) to new ones, (n, channels).
        where: (n,), the old token whose slot each new one takes.
        owner: (tokens,), the old token whose slot the one that stands for each takes; itself if none does.
        size: Rows and columns of the new tokens; their number and 0 where they form no grid.
    """

    make: Callable[[Tensor], Tensor]
    where: Tensor
    owner: Tensor
    size: tuple[int, int]


def plan(frame: Tensor, grid: tuple[int, int], count: int, resample: Resample) -> Plan:
    """How a frame (tokens, channels) of a grid becomes `count` tokens, or somewhat fewer that form a grid."""
    device, tokens = frame.device, len(frame)
    if resample == "pick":
        where = torch.linspace(0, tokens - 1, count, dtype=torch.float64).long().to(device)
        return Plan(lambda x: x[where], where, torch.arange(tokens, device=device), (count, 0))
    if resample == "merge":
        rounds = merge_rounds(frame[None], halvings(tokens, count))
        if not rounds:
            everything = torch.arange(tokens, device=device)
            return Plan(lambda x: x, everything, everything, (tokens, 0))
        where, owner = places(rounds, tokens)
        return Plan(lambda x: merge(x[None], rounds)[-1][0], where[0], owner[0], (count, 0))
    size = fit(count, grid)
    at = [((torch.arange(n) + 0.5) * old / n).long() for n, old in zip(size, grid, strict=True)]
    of = [(torch.arange(old) * n // old) for n, old in zip(size, grid, strict=True)]
    where = (at[0][:, None] * grid[1] + at[1]).flatten().to(device)
    owner = (at[0][of[0]][:, None] * grid[1] + at[1][of[1]]).flatten().to(device)
    if resample == "merge_axes":
        return Plan(_merge_axes(frame.unflatten(0, grid), size), where, owner, size)

    def make(x: Tensor) -> Tensor:
        maps = x.float().T.unflatten(1, grid)[None]
        if resample == "bilinear":
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        else:
            maps = F.adaptive_avg_pool2d(maps, size)
        return maps[0].flatten(1).T

    return Plan(make, where, owner, size)


def _merge_axes(frame: Tensor, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Merge the tokens of every row of a frame (rows, columns, channels), then those of every column."""
    across = merge_rounds(frame, halvings(frame.shape[1], size[1]))
    narrow = merge(frame, across)[-1] if across else frame
    down = merge_rounds(narrow.transpose(0, 1), halvings(frame.shape[0], size[0]))

    def make(x: Tensor) -> Tensor:
        maps = x.view(frame.shape[0], frame.shape[1], -1)
        maps = merge(maps, across)[-1] if across else maps
        maps = maps.transpose(0, 1)
        maps = merge(maps, down)[-1] if down else maps
        return maps.transpose(0, 1).flatten(0, 1)

    return make


def _planned(plans: list[list[Plan | None]]) -> list[tuple[int, int, Plan]]:
    return [(v, f, one) for v, video in enumerate(plans) for f, one in enumerate(video) if one is not None]
