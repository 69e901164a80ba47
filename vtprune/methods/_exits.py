"""Visual exits: rows of a batch that give up all of their visual tokens, and what such decisions look at."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.methods.base import Keep, VisualTokens


def leave(tokens: VisualTokens, rows: Tensor) -> Keep:
    """All visual tokens of the rows that `rows` (rows,) marks leave, those of the others stay."""
    return Keep(tokens.valid & ~rows.to(tokens.valid.device).unsqueeze(1))


def mean_and_last(states: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """What trained exits look at: the mean of the text behind the pictures but for its last token, and that token.

    Args:
        states: (rows, n, width), hidden states of the text, padded on the left.
        valid: bool, (rows, n), False on padding.

    Returns:
        (rows, 2 * width), mean first, in the dtype of `states`; and bool (rows,), False for rows with fewer than two
        tokens, which have no mean.
    """
    counts = valid.sum(1)
    if states.shape[1] == 0:
        return states.new_zeros(len(states), 2 * states.shape[2]), counts > 1
    before = valid[:, :-1].unsqueeze(-1)
    mean = states[:, :-1].float().masked_fill(~before, 0).sum(1) / (counts - 1).clamp_min(1).unsqueeze(1)
    return torch.cat((mean.to(states.dtype), states[:, -1]), 1), counts > 1
