"""Merges windows of the picture in which all tokens look alike into one token each.

Windows are ranked by the mean cosine between their tokens, and the most uniform ones become their mean, until the
budget is met, or as far as a threshold goes. By default that happens at the encoder's output: a budget may ask for
windows that are not uniform, and there the encoder has at least seen their patches one by one.

Paper: "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model" (MustDrop),
arXiv 2411.10803. Authors' code: github.com/liuting20/MustDrop.
Differs from the paper in: this is its first stage; those in the decoder and in the cache are not in here yet, and the
key set (`key_set`), which these must not drop, protects nothing so far. The paper merges by a threshold behind the
first block of the encoder: `tau=0.8, block=0`. Every picture is merged by itself (there: as many windows in all of a
batch), tokens stay in the order of the picture, and at the encoder's output the merged token stands in the middle of
its window. Tokens at the edges that fill no window are left alone. `keep` names a budget.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget, token_count
from vtprune.methods._groups import average
from vtprune.methods._select import check_number, check_whole_numbers, given, top_k_mask
from vtprune.methods.base import (
    EncoderTokens,
    Group,
    Keep,
    Method,
    ModelInfo,
    Pictures,
    Place,
    Positions,
    Stage,
    check_layer,
)
from vtprune.methods.registry import register


@register("mustdrop")
@dataclasses.dataclass(frozen=True)
class MustDrop(Method):
    """Local spatial merging at the encoder's output, or behind one of its blocks.

    Of w x w tokens one stays, so that no budget is smaller than one token in w * w, and those at the edges.
    """

    kind = "merging"
    places = (Place.ENCODER_LAYER, Place.ENCODER_OUTPUT)
    paper = "MustDrop, arXiv 2411.10803"
    cost = "N C"
    adaptive = True

    keep: Budget = 0.334  # ratio in (0, 1] or tokens per picture, met from below by whole windows; no effect with `tau`
    tau: float | None = None  # merge all windows with at least this mean cosine, in [-1, 1]; 0.8 in the paper
    window: int = 3  # side of a window in tokens, >= 2; 2 or 4 fit InternVL's 16 x 16
    block: int | None = None  # vision block behind which it acts, 0 in the paper; None: at the encoder's output
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.tau is not None:
            check_number("tau", self.tau, -1, 1)
        if isinstance(check_whole_numbers("window", self.window, least=2), tuple):
            raise TypeError(f"window must be a whole number >= 2, got {self.window!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One merge of every tile and frame: behind a block of the encoder, or at its output."""
        if self.block is not None:
            block = check_layer("block", self.block, 0, model.encoder_layers - 1)
            return [
                Stage(
                    Place.ENCODER_LAYER,
                    self.merge_patches,
                    (block,),
                    positions=self.positions,
                    after_block=True,
                    ragged=self.tau is not None,
                    needs_all=True,
                )
            ]
        return [
            Stage(
                Place.ENCODER_OUTPUT,
                self.decide,
                positions=self.positions,
                mixes=True,
                needs_all=True,
                scope="tile",
                budget=self.keep if self.tau is None else None,
            )
        ]

    def merge_patches(self, tokens: EncoderTokens) -> Group:
        """Merge the windows of the residual stream whose patches are most alike; the class token stays alone."""
        first, side = tokens.protected, math.isqrt(tokens.patches)
        hidden = given(tokens.hidden, self.name, "hidden")[:, first:]
        if hidden.shape[1] != side * side:
            raise ValueError(
                f"{self.name} merges windows of whole square grids, got {hidden.shape[1]} of {tokens.patches} patches; "
                "use it before methods that remove tokens, or with block=None."
            )
        owner = self.owners(hidden, (1, side, side), token_count(self.keep, tokens.patches))
        stands = owner == torch.arange(owner.shape[1], device=owner.device)
        number = (stands.cumsum(1) - 1).gather(1, owner) + first
        groups = first + int(stands.sum(1).max())
        return Group(F.pad(number, (first, 0)), groups, weighted=False, ragged=self.tau is not None)

    def decide(self, pictures: Pictures) -> Keep:
        """Merge the windows whose tokens are most alike."""
        if pictures.grid is None:
            raise ValueError(f"{self.name} merges windows of whole grids; put it before methods that remove tokens.")
        owner = self.owners(pictures.encoded, pictures.grid, pictures.count(self.keep))
        itself = torch.arange(pictures.tokens, device=owner.device)
        return Keep(owner == itself, functools.partial(average, owner=owner), owner)

    def owners(self, x: Tensor, grid: tuple[int, int, int], count: int) -> Tensor:
        """For every token (pictures, tokens) the one that stands for it, if at most `count` shall be left."""
        windows = windows_of(grid, self.window, x.device)
        scores = likeness(x, windows)
        if self.tau is None:
            chosen = top_k_mask(scores, math.ceil((x.shape[1] - count) / (self.window**2 - 1)))
        else:
            chosen = scores >= self.tau
        return window_owner(chosen, windows, x.shape[1])


def windows_of(grid: tuple[int, int, int], side: int, device: torch.device | None = None) -> Tensor:
    """(windows, side * side): the tokens of every whole window of a grid, windows and tokens in raster order."""
    frames, rows, columns = grid
    tokens = torch.arange(frames * rows * columns, device=device).view(frames, rows, columns)
    whole = tokens[:, : rows // side * side, : columns // side * side]
    parts = whole.reshape(frames, rows // side, side, columns // side, side).transpose(2, 3)
    return parts.reshape(-1, side * side)


def likeness(x: Tensor, windows: Tensor) -> Tensor:
    """Mean cosine between different tokens of a window, (pictures, windows), float32; x is (pictures, tokens, n)."""
    unit = F.normalize(x.detach().float(), dim=-1, eps=1e-8)[:, windows]
    # The sum over all pairs is the squared length of the sum; less that of each token with itself.
    pairs = unit.sum(2).square().sum(-1) - unit.square().sum((2, 3))
    size = windows.shape[1]
    return pairs / (size * (size - 1))


def window_owner(chosen: Tensor, windows: Tensor, tokens: int) -> Tensor:
    """For every token (pictures, tokens) the middle one of its window, if that is chosen (pictures, windows)."""
    owner = torch.arange(tokens, device=windows.device).repeat(len(chosen), 1)
    count, size = windows.shape
    middle = windows[:, (size - 1) // 2, None] if size % 2 else windows[:, size // 2 + round(size**0.5) // 2, None]
    new = torch.where(chosen[..., None], middle, windows)
    return owner.scatter(1, windows.reshape(1, count * size).expand(len(chosen), -1), new.flatten(1))


def key_set(attention: Tensor, share: float = 0.08) -> Tensor:
    """Indices of what no later stage may drop, (pictures, n): the share with most attention, highest first.

    Args:
        attention: (pictures, tokens), of the encoder's last block.
        share: In (0, 1]; rounded up.
    """
    count = math.ceil(share * attention.shape[1])
    return attention.detach().float().argsort(dim=1, descending=True, stable=True)[:, :count]
