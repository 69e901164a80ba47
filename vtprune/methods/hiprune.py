"""Keeps object tokens that a middle encoder block finds, their four neighbours, and what a deep block attends to most.

Middle blocks attend to objects, deep ones to tokens that collect what the whole picture is about; both are kept, so
that details and context are there.

Paper: "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
arXiv 2508.00553. Authors' code: github.com/Danielement321/HiPrune.
Differs from the paper in: neighbours are those on the grid (`wrap=True` for the authors' flat indices, where the token
after the last of a row is the first of the next); a token is never picked twice (in the authors' Qwen-VL code it can
be, and fewer tokens stay); tiles and frames are decided one by one, with equal shares.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._select import check_number, given, top_k_mask
from vtprune.methods.base import EncoderSignal, Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register

OBJECT_DEPTH = 8 / 22
"""Where objects show best: block 8 of CLIP-L's 23 used ones; in Qwen2.5-VL, block 15 of those with full attention."""


@register("hiprune")
@dataclasses.dataclass(frozen=True)
class HiPrune(Method):
    """Anchors, buffers and registers at the encoder's output, by attention received."""

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    paper = "HiPrune, arXiv 2508.00553"
    cost = "2 N^2 D, attention in two encoder blocks"

    keep: Budget = 0.334  # ratio in (0, 1] or tokens per picture; the paper has 192, 128 and 64 of 576, and .223, .112
    alpha: float = 0.1  # share of the budget for anchors and their buffers, five tokens each, in [0, 1]
    layer: int | None = None  # block that finds objects, from 0; None: 8 in CLIP-L, 15 in Qwen2.5-VL, else by depth
    wrap: bool = False  # neighbours by flat index as in the authors' code: rows run on into the next
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("alpha", self.alpha, 0, 1)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, on every tile and frame with the same budget."""
        block = model.attention_block(OBJECT_DEPTH) if self.layer is None else self.layer
        objects, deep = EncoderSignal("received", block), EncoderSignal("received", model.scored_block)
        return [
            Stage(
                Place.ENCODER_OUTPUT,
                functools.partial(self.decide, objects=objects, deep=deep),
                signals=frozenset({objects, deep}),
                positions=self.positions,
                scope="tile",
                budget=self.keep,
                needs_all=self.wrap,
            )
        ]

    def decide(self, pictures: Pictures, objects: EncoderSignal, deep: EncoderSignal) -> Keep:
        """Keep anchors, buffers and registers."""
        count = pictures.count(self.keep)
        scores = [given(pictures.signals.get(signal), self.name, str(signal)) for signal in (objects, deep)]
        anchors = top_k_mask(scores[0], anchor_count(count, self.alpha))
        if self.wrap:
            if pictures.grid is None:
                raise ValueError(f"{self.name} with wrap=True needs whole grids; put it first, or use wrap=False.")
            buffers = flat_neighbours(anchors, pictures.grid[2])
        else:
            cells = given(pictures.cells, self.name, "cells")
            buffers = neighbours(anchors, cells.frame, cells.row, cells.column, pictures.grid)
        return Keep(anchors_buffers_registers(anchors, buffers, scores[1], count))


def anchor_count(count: int, alpha: float) -> int:
    """Number of anchors in a budget of `count` tokens: each comes with four buffers; halves are rounded to even."""
    return round(count * alpha / 5)


def neighbours(
    anchors: Tensor, frame: Tensor, row: Tensor, column: Tensor, grid: tuple[int, int, int] | None = None
) -> Tensor:
    """Mark the tokens above, below, left and right of anchors, all (pictures, tokens); anchors themselves may be.

    Args:
        anchors: bool, (pictures, tokens).
        frame: Of every token.
        row: Likewise.
        column: Likewise.
        grid: Frames, rows and columns that they span, if known; else they are counted, which waits for a GPU.
    """
    frame, row, column = (x - x.amin(1, keepdim=True) for x in (frame, row, column))
    sizes = grid or tuple(int(x.max()) + 1 for x in (frame, row, column))
    frames, rows, columns = (size + 2 for size in sizes)  # with a margin
    place = (frame * rows + row + 1) * columns + column + 1
    table = torch.zeros(len(anchors), frames * rows * columns, dtype=torch.bool, device=anchors.device)
    table.scatter_(1, place, anchors)
    around = [table.gather(1, place + step) for step in (-1, 1, -columns, columns)]
    return torch.stack(around).any(0)


def flat_neighbours(anchors: Tensor, width: int) -> Tensor:
    """The same by flat index on a grid of this width: rows run on, and what leads off the grid is its first or last."""
    last = anchors.shape[1] - 1
    found = torch.zeros_like(anchors)
    for step in (-1, 1, -width, width):
        index = (torch.arange(last + 1, device=anchors.device) + step).clamp(0, last)
        found |= (
            torch.zeros_like(anchors, dtype=torch.int8).scatter_add_(
                1, index.expand_as(anchors), anchors.to(torch.int8)
            )
            > 0
        )
    return found


def anchors_buffers_registers(
    anchors: Tensor, buffers: Tensor, deep: Tensor, count: int, *, subtract: bool = False
) -> Tensor:
    """Mark `count` tokens of every picture: anchors, their buffers, and of the others those with the highest scores.

    Where anchors and buffers are more than `count`, buffers with low scores stay out.

    Args:
        anchors: bool, (pictures, tokens), at most `count` in each.
        buffers: Likewise, anchors may be among them.
        deep: (pictures, tokens), scores.
        count: Tokens to keep.
        subtract: Do not exclude what is kept already, but lower its score by one, as the authors' code does. Where
            scores are larger than one, tokens may be picked twice and fewer stay.
    """
    room = count - anchors.sum(1)
    kept = anchors | top_k_mask(deep, room, buffers & ~anchors)
    room = count - kept.sum(1)
    if subtract:
        return kept | top_k_mask(deep.float() - kept.float(), room)
    return kept | top_k_mask(deep, room, ~kept)
