"""Lets the thumbnail say how many tokens each tile of a picture keeps, and have a say in which.

Tiles whose part of the thumbnail has high logits of the class token get larger shares; in every tile, the thumbnail's
logits are added to its own.

Paper: "Global Compression Commander: Plug-and-Play Inference Acceleration for High-Resolution Large Vision-Language
Models" (GlobalCom2), AAAI 2026, arXiv 2501.05179. Authors' code: github.com/xuyang-liu16/GlobalCom2.
Differs from the paper in: kept tokens stay in the order of the picture (there: the thumbnail's by score, and in padded
pictures some of the tiles' in another tile's row), and newlines leave with their rows; `keep=1.0` keeps everything. A
picture without tiles (LLaVA-1.5, a frame) keeps what the thumbnail would. Encoders without a class token use the logits
of the mean query. InternVL is not told how tiles lie: the most nearly square arrangement is taken. Refused on models
that take pictures of any size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._select import check_number, given, top_k_mask
from vtprune.methods.base import EncoderSignal, Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("globalcom2")
@dataclasses.dataclass(frozen=True)
class GlobalCom2(Method):
    """A ratio per tile from the thumbnail's logits, a selection by those of both.

    Shares are rounded down, and what a tile cannot use is lost.
    """

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    paper = "GlobalCom2, AAAI 2026, arXiv 2501.05179"
    cost = "N D"
    adaptive = True

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture, all tiles together; the paper has .75, .5, .25 and .1
    temperature: float = 10.0  # of the softmax over tiles, above 0
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("temperature", self.temperature, 0, float("inf"), above_low=True)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, on all tiles of a picture together.

        Raises:
            ValueError: The model takes pictures of any size, without tiles.
        """
        if model.patches is None:
            raise ValueError(
                f"{self.name} cannot work on {model.family}: this family has neither thumbnail nor tiles; use hiprune "
                "or visionzip."
            )
        # The encoder's last block, also where the features come from the one before.
        logits = EncoderSignal("logits", model.attention_blocks[-1])
        decide = functools.partial(self.decide, asked=logits)
        asked = frozenset({logits})
        return [Stage(Place.ENCODER_OUTPUT, decide, signals=asked, positions=self.positions, needs_all=True)]

    def decide(self, pictures: Pictures, asked: EncoderSignal) -> Keep:
        """Keep the thumbnail's highest logits, and of every tile the highest combined scores."""
        logits = given(pictures.signals.get(asked), self.name, str(asked)).detach().float()
        count, tiles = pictures.count(self.keep), pictures.tiles
        if tiles is None or count >= pictures.tokens:
            return Keep(top_k_mask(logits, count))
        ratio = self.keep if isinstance(self.keep, float) else count / pictures.tokens
        thumbnail = logits[:, tiles.thumbnail]
        scales = crop_scales(thumbnail, tiles.side, tiles.grid, ratio, self.temperature)
        shown = guidance(thumbnail, tiles.side, tiles.canvas)
        mask = torch.zeros_like(logits, dtype=torch.bool)
        mask[:, tiles.thumbnail] = top_k_mask(thumbnail, max(int(thumbnail.shape[1] * ratio), 1))
        for number, (tokens, place) in enumerate(zip(tiles.crops, tiles.place, strict=True)):
            shares = (len(tokens) * scales[:, number]).long()
            mask[:, tokens] = top_k_mask(combined(logits[:, tokens], shown[:, place]), shares)
        return Keep(mask)


def crop_scales(
    thumbnail: Tensor, side: tuple[int, int], grid: tuple[int, int], ratio: float, temperature: float
) -> Tensor:
    """The share of its tokens that each tile keeps, (pictures, tiles), float64.

    Args:
        thumbnail: (pictures, tokens of the thumbnail), logits.
        side: Rows and columns of the thumbnail.
        grid: Rows and columns of tiles. Each is one region of the thumbnail; what does not divide joins the last one.
        ratio: Of the tokens of all tiles.
        temperature: Of the softmax over the regions' sums.
    """
    row, column = (
        (torch.arange(n, device=thumbnail.device) // max(n // parts, 1)).clamp_max(parts - 1)
        for n, parts in zip(side, grid, strict=True)
    )
    region = (row[:, None] * grid[1] + column).flatten()
    exact = torch.float32 if thumbnail.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    sums = torch.zeros(len(thumbnail), grid[0] * grid[1], dtype=exact, device=thumbnail.device)
    sums = sums.scatter_add_(1, region.expand_as(thumbnail), thumbnail.to(exact))
    weights = ((sums - sums.amax(1, keepdim=True)) / temperature).exp()
    weights = weights / (weights.sum(1, keepdim=True) + 1e-8)
    return (ratio * (1 + weights - weights.mean(1, keepdim=True))).clamp_max(1)


def guidance(thumbnail: Tensor, side: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    """Logits of the thumbnail (pictures, tokens) where tiles show the same: (pictures, tokens of the canvas)."""
    grown = F.interpolate(thumbnail.unflatten(1, side)[:, None], canvas, mode="bilinear", align_corners=False)
    return grown.flatten(1)


def combined(own: Tensor, shown: Tensor) -> Tensor:
    """A tile's own logits and the thumbnail's, (pictures, tokens of the tile) each, equally weighted."""
    return F.normalize(own, dim=1) + F.normalize(shown, dim=1)
