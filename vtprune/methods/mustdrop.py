"""Merges windows of the picture in which all tokens look alike into one token each.

Windows are ranked by the mean cosine between their tokens, and the most uniform ones become their mean, until the
budget is met.

Paper: "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model" (MustDrop),
arXiv 2411.10803. Authors' code: github.com/liuting20/MustDrop.
Differs from the paper in: this is its first stage; those in the decoder and in the cache are not in here yet, and the
key set (`key_set`), which these must not drop, protects nothing so far. Windows are merged at the encoder's output
(there: behind its first block), in every picture by itself (there: as many in all of a batch), and the merged token
stands in the middle of its window. Tokens at the edges that fill no window are left alone. `keep` names a budget.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._select import check_number, check_whole_numbers, top_k_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("mustdrop")
@dataclasses.dataclass(frozen=True)
class MustDrop(Method):
    """Local spatial merging at the encoder's output.

    Of w x w tokens one stays, so that no budget is smaller than one token in w * w, and those at the edges.
    """

    kind = "merging"
    places = (Place.ENCODER_OUTPUT,)
    paper = "MustDrop, arXiv 2411.10803"
    cost = "N C"
    adaptive = True

    keep: Budget = 0.334  # ratio in (0, 1] or tokens per picture, met from below by whole windows; no effect with `tau`
    tau: float | None = None  # merge all windows with at least this mean cosine, in [-1, 1]; 0.8 in the paper
    window: int = 3  # side of a window in tokens, >= 2; 2 or 4 fit InternVL's 16 x 16
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.tau is not None:
            check_number("tau", self.tau, -1, 1)
        if isinstance(check_whole_numbers("window", self.window, least=2), tuple):
            raise TypeError(f"window must be a whole number >= 2, got {self.window!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One merge at the encoder's output, on every tile and frame."""
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

    def decide(self, pictures: Pictures) -> Keep:
        """Merge the windows whose tokens are most alike."""
        if pictures.grid is None:
            raise ValueError(f"{self.name} merges windows of whole grids; put it before methods that remove tokens.")
        windows = windows_of(pictures.grid, self.window, pictures.encoded.device)
        scores = likeness(pictures.encoded, windows)
        if self.tau is None:
            merges = math.ceil((pictures.tokens - pictures.count(self.keep)) / (self.window**2 - 1))
            chosen = top_k_mask(scores, merges)
        else:
            chosen = scores >= self.tau
        owner = window_owner(chosen, windows, pictures.tokens)
        itself = torch.arange(pictures.tokens, device=owner.device)
        return Keep(owner == itself, functools.partial(average, owner=owner), owner)


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


def average(x: Tensor, owner: Tensor) -> Tensor:
    """Give the owner of every group of tokens of x (pictures, tokens, channels) the group's plain mean."""
    where = owner.unsqueeze(-1).expand_as(x)
    sums = torch.zeros_like(x, dtype=torch.float32).scatter_add(1, where, x.float())
    members = torch.zeros_like(owner).scatter_add(1, owner, torch.ones_like(owner))
    return (sums / members.clamp_min(1).unsqueeze(-1)).to(x.dtype)


def key_set(attention: Tensor, share: float = 0.08) -> Tensor:
    """Indices of what no later stage may drop, (pictures, n): the share with most attention, highest first.

    Args:
        attention: (pictures, tokens), of the encoder's last block.
        share: In (0, 1]; rounded up.
    """
    count = math.ceil(share * attention.shape[1])
    return attention.detach().float().argsort(dim=1, descending=True, stable=True)[:, :count]
