"""Divides the budget among the tiles of a picture by what the thumbnail shows, and keeps the most attended tokens.

The thumbnail's attention in an early block counts what lies under each tile; attention in a late block ranks the tokens
within it.

Paper: "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models",
AAAI 2025, arXiv 2408.10945. Authors' code: github.com/hasanar1f/HiRED.
Differs from the paper in: the budget counts the tokens of the unpadded picture, so none is spent on padding; a tile's
part of the thumbnail is what the tile shows (`regions="strips"` for the authors' code: a run of the raster); `keep` is
rounded, not cut off; scores are float32. InternVL is not told how tiles lie: the most nearly square arrangement is
taken. A picture without tiles keeps its most attended tokens. Encoders without a class token use the attention that a
token receives on average.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._select import check_choice, check_number, given, top_k_mask
from vtprune.methods.base import EncoderSignal, Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("hired")
@dataclasses.dataclass(frozen=True)
class HiRED(Method):
    """A budget per tile from early attention, a selection in every tile by late attention.

    Shares are rounded down, so that up to one token per tile of the budget is not used; a share beyond a tile's tokens
    is lost.
    """

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    paper = "HiRED, AAAI 2025, arXiv 2408.10945"
    cost = "2 N D with [CLS], attention in two encoder blocks; 2 N^2 D without"
    adaptive = True

    keep: Budget = 0.2  # ratio in (0, 1] or tokens per picture, all tiles together; the paper has 0.4, 0.2 and 0.1
    alpha: float = 0.5  # share of the budget for the thumbnail, in [0, 1]
    regions: Literal["tiles", "strips"] = "tiles"  # what of the thumbnail counts for a tile: what it shows, or a strip
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("alpha", self.alpha, 0, 1)
        check_choice("regions", self.regions, ("tiles", "strips"))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, on all tiles of a picture together."""
        # Encoders that take pictures of any size have no tiles.
        early = None if model.patches is None else EncoderSignal("attention", model.attention_blocks[0])
        asked: set[str | EncoderSignal] = {"encoder_attention"} if early is None else {"encoder_attention", early}
        decide = functools.partial(self.decide, asked=early)
        return [Stage(Place.ENCODER_OUTPUT, decide, signals=frozenset(asked), positions=self.positions, needs_all=True)]

    def decide(self, pictures: Pictures, asked: EncoderSignal | None) -> Keep:
        """Keep the most attended tokens of the thumbnail and of every tile."""
        late = given(pictures.attention, self.name, "encoder_attention")
        total, tiles = pictures.count(self.keep), pictures.tiles
        if asked is None or tiles is None or total >= pictures.tokens:
            return Keep(top_k_mask(late, total))
        early = given(pictures.signals.get(asked), self.name, str(asked))[:, tiles.thumbnail]
        region = tiles.regions() if self.regions == "tiles" else strips(early.shape[1], len(tiles.crops), late.device)
        full = min(max(int(total * self.alpha), 1), early.shape[1])
        shares = crop_shares(early, region, len(tiles.crops), total - full, self.alpha)
        mask = torch.zeros_like(late, dtype=torch.bool)
        mask[:, tiles.thumbnail] = top_k_mask(late[:, tiles.thumbnail], full)
        for number, tokens in enumerate(tiles.crops):
            mask[:, tokens] = top_k_mask(late[:, tokens], shares[:, number])
        return Keep(mask)


def strips(tokens: int, crops: int, device: torch.device | None = None) -> Tensor:
    """(tokens,): the tile of every token of the thumbnail in the authors' code, by equal runs of the raster."""
    return torch.arange(tokens, device=device) * crops // tokens


def crop_shares(early: Tensor, region: Tensor, crops: int, budget: int, alpha: float) -> Tensor:
    """What each tile gets of a budget: in proportion to its part of the thumbnail's 1 - alpha most attended tokens.

    Args:
        early: (pictures, tokens of the thumbnail), early attention.
        region: (tokens of the thumbnail,), the tile that each belongs to.
        crops: Number of tiles.
        budget: Tokens for all tiles.
        alpha: See `HiRED`.

    Returns:
        (pictures, crops) whole numbers, rounded down; their sum may be a little less than `budget`.
    """
    content = top_k_mask(early, int(early.shape[1] * (1 - alpha)))
    if alpha == 1:  # nothing counts, so everything does
        content = torch.ones_like(content)
    counts = torch.zeros(len(early), crops, device=early.device)
    counts = counts.scatter_add_(1, region.expand_as(early), content.float())
    return (counts / counts.sum(1, keepdim=True) * budget).long()
