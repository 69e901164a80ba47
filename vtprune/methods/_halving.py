"""Tokens that leave are averaged into the most similar token that stays, one after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 512
"""Rows of similarities that are held at once."""


def most_similar(x: Tensor, stays: Tensor, valid: Tensor) -> Tensor:
    """For every token that leaves, the one that stays and is most similar to it (cosine); all others own themselves.

    Args:
        x: (rows, tokens, channels).
        stays: bool, (rows, tokens).
        valid: bool, (rows, tokens), False on padding, which belongs to nobody.

    Returns:
        (rows, tokens) int64.
    """
    unit = F.normalize(x.detach().float(), dim=-1)
    others = unit.transpose(1, 2)
    nearest = torch.cat(
        [
            (unit[:, start : start + BLOCK] @ others).masked_fill(~stays.unsqueeze(1), -torch.inf).argmax(-1)
            for start in range(0, x.shape[1], BLOCK)
        ],
        dim=1,
    )
    return torch.where(valid & ~stays & stays.any(1, keepdim=True), nearest, torch.arange(x.shape[1], device=x.device))


def halving_weights(owner: Tensor) -> Tensor:
    """Weights of the tokens of a group whose owner becomes (owner + token) / 2 for every token in turn.

    The last of them has 1/2, the one before it 1/4, and so on; the owner has as much as the first of them.

    Args:
        owner: (rows, tokens); owners own themselves.

    Returns:
        (rows, tokens) float32; those of a group add up to 1.
    """
    itself = torch.arange(owner.shape[1], device=owner.device)
    order = (2 * owner + (owner != itself)).argsort(dim=1, stable=True)  # group by group, owners first
    members = torch.zeros_like(owner).scatter_add(1, owner, torch.ones_like(owner))
    group = owner.gather(1, order)
    before_end = members.cumsum(1).gather(1, group) - itself
    halvings = torch.minimum(before_end, members.gather(1, group) - 1)
    return torch.zeros_like(owner, dtype=torch.float32).scatter(1, order, torch.exp2(-halvings.float()))
