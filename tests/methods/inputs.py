"""Made-up inputs of stages."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.methods import EncoderTokens, ModelInfo, Pictures, VisualTokens

INFO = ModelInfo(family="llava", encoder_layers=23, decoder_layers=32, has_cls=True)


def pictures(count: int = 2, grid: tuple[int, int, int] = (1, 6, 8), channels: int = 12, seed: int = 0) -> Pictures:
    """Pictures with all signals."""
    g = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1] * grid[2]
    return Pictures(
        grid,
        torch.randn(count, tokens, channels, generator=g),
        torch.randn(count, tokens, channels + 4, generator=g),
        torch.rand(count, tokens, generator=g),
    )


def row(batch: Pictures, i: int) -> Pictures:
    """One picture of a batch, alone."""
    parts = (t if t is None else t[i : i + 1] for t in (batch.encoded, batch.projected, batch.attention))
    return Pictures(batch.grid, *parts)


def encoder_tokens(
    layer: int = 0, patches: int = 48, protected: int = 1, count: int = 2, seed: int = 0
) -> EncoderTokens:
    """Unmerged tokens of an encoder layer."""
    keys = torch.randn(count, patches + protected, 8, generator=torch.Generator().manual_seed(seed))
    return EncoderTokens(layer, keys, torch.ones(count, patches + protected), protected, patches)


def visual_tokens(
    attention: Tensor, arrived: list[list[int]], layer: int = 2, memory: dict | None = None
) -> VisualTokens:
    """Visual tokens of rows with so many tokens per picture, padded on the right as far as `attention` goes."""
    picture = torch.full(attention.shape, -1)
    for r, counts in enumerate(arrived):
        numbers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        picture[r, : len(numbers)] = numbers
    return VisualTokens(
        layer, picture >= 0, picture, torch.tensor(arrived), attention, {} if memory is None else memory
    )
