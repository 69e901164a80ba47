"""Keeps, in every frame, the tokens that are least like the video's and the frame's mean; unusual frames keep more.

Likeness is a sum of Gaussians of the distance between the tokens' quietest channels; a frame that is unlike the others
gets a larger share of the budget.

Paper: "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
arXiv 2505.14454. Authors' code: github.com/xuyang-liu16/VidCom2.
Differs from the paper in: scores are float32 (there: half precision, in which many tie); pictures are pruned too, with
tiles in the place of frames (there: left as they are); newline tokens leave with their lines, the paper's order, in
which all of a frame's newlines follow its tokens, is `newlines_last`; a budget of everything keeps everything (there,
at R = 1, usual frames still lose tokens).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget
from vtprune.kernels import gather_rows, merge_by_owner
from vtprune.methods._frames import frame_numbers, frame_top_k_mask
from vtprune.methods._select import check_number, given
from vtprune.methods.base import Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Variances of the Gaussians whose sum is the similarity."""


@register("vidcom2")
@dataclasses.dataclass(frozen=True)
class VidCom2(Method):
    """Frame-wise selection by uniqueness, with a budget for every frame.

    `keep` is the paper's base scale R. The counts of the frames add up to it only roughly: they are rounded frame by
    frame, every frame keeps at least one token, and what a frame cannot hold is not handed on.
    """

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    paper = "VidCom2, EMNLP 2025, arXiv 2505.14454"
    cost = "N C"
    adaptive = True

    keep: Budget = 0.25  # base scale R: ratio in (0, 1] or tokens per picture or video; the paper also has 0.15
    channels: float = 0.5  # share of channels that are looked at, those with the lowest variance, in (0, 1]
    temperature: float = 0.01  # of the softmax over frames, > 0; small: one frame takes nearly all of the extra budget
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("channels", self.channels, 0, 1, above_low=True)
        check_number("temperature", self.temperature, 0, 1e6, above_low=True)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, on projected features."""
        return [Stage(Place.ENCODER_OUTPUT, self.decide, signals=frozenset({"projected"}), positions=self.positions)]

    def decide(self, pictures: Pictures) -> Keep:
        """Keep the most unusual tokens of every frame."""
        projected = given(pictures.projected, self.name, "projected")
        count = pictures.count(self.keep)
        if count >= pictures.tokens:
            return Keep(projected.new_ones(projected.shape[:2], dtype=torch.bool))
        number, frames = frame_numbers(pictures)
        rows = quiet_rows(projected, quiet_channels(projected, self.channels))
        of_video, of_frame = usual(rows, number, frames)
        base = self.keep if isinstance(self.keep, float) else count / pictures.tokens
        scales = frame_scales(of_video, number, frames, base, self.temperature)
        return Keep(frame_top_k_mask(-(of_video + of_frame), number, frame_counts(scales, number)))


def quiet_channels(features: Tensor, share: float = 0.5) -> Tensor:
    """Indices of the channels of features (pictures, tokens, channels) that vary least: (pictures, n)."""
    variance = features.detach().float().var(dim=1, unbiased=False)
    return variance.argsort(dim=1, stable=True)[:, : max(int(share * features.shape[2]), 1)]


def quiet_rows(features: Tensor, channels: Tensor) -> Tensor:
    """The given channels (pictures, n) of features, every token scaled to length 1: float32 (pictures, tokens, n)."""
    chosen = features.detach().float().gather(2, channels.unsqueeze(1).expand(-1, features.shape[1], -1))
    return F.normalize(chosen, dim=-1, eps=1e-12)


def usual(rows: Tensor, number: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """How much tokens are like the mean of the whole video, and of their own frame.

    Args:
        rows: (pictures, tokens, channels) of length 1.
        number: (pictures, tokens), the frame of each token.
        frames: Number of frames.

    Returns:
        Two of (pictures, tokens), in (0, 5].
    """
    whole = rows.mean(dim=1, keepdim=True)
    centres, _ = merge_by_owner(rows, number, frames)
    return likeness(rows, whole), likeness(rows, gather_rows(centres, number))


def likeness(rows: Tensor, centres: Tensor) -> Tensor:
    """Sum of Gaussians of several widths of the distance between rows and centres, over the last axis."""
    distance = (rows - centres).square().sum(-1)
    return torch.stack([(distance / (-2 * width)).exp() for width in WIDTHS]).sum(0)


def frame_scales(of_video: Tensor, number: Tensor, frames: int, base: float, temperature: float = 0.01) -> Tensor:
    """Share of its tokens that each frame may keep, at most 1: (pictures, frames), more for less usual frames."""
    mean, sizes = merge_by_owner(of_video.unsqueeze(-1), number, frames)
    unusual = (-mean.squeeze(-1)).masked_fill(sizes == 0, -torch.inf)
    extra = ((unusual - unusual.amax(1, keepdim=True)) / temperature).softmax(1)
    return (base * (1 + extra - 1 / (sizes > 0).sum(1, keepdim=True))).clamp(max=1)


def frame_counts(scales: Tensor, number: Tensor) -> Tensor:
    """Number of tokens that each frame keeps, at least one: (pictures, frames)."""
    sizes = torch.zeros_like(scales, dtype=torch.int64).scatter_add_(1, number, torch.ones_like(number))
    return torch.minimum((scales * sizes).round().long().clamp_min(1), sizes)


def newlines_last(mask: Tensor, columns: int) -> Tensor:
    """Order of the tokens that stay in the paper's LLaVA-Video variant: in every frame, then all of its newlines.

    Args:
        mask: bool, (frames, rows * columns), the tokens that stay.
        columns: Tokens per row; a newline follows each row.

    Returns:
        (kept,) int64, indices into the frames with newlines, (frames, rows, columns + 1) flattened.
    """
    frames, tokens = mask.shape
    places = torch.arange(frames * (tokens + tokens // columns), device=mask.device).view(frames, -1, columns + 1)
    stays = torch.cat((mask, mask.new_ones(frames, tokens // columns)), 1)
    return torch.cat((places[..., :-1].flatten(1), places[..., -1]), 1)[stays]
