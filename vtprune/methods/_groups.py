"""Means of groups of tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def average(x: Tensor, owner: Tensor) -> Tensor:
    """Give the owner of every group of tokens of x (pictures, tokens, channels) the group's plain mean."""
    where = owner.unsqueeze(-1).expand_as(x)
    sums = torch.zeros_like(x, dtype=torch.float32).scatter_add(1, where, x.float())
    members = torch.zeros_like(owner).scatter_add(1, owner, torch.ones_like(owner))
    return (sums / members.clamp_min(1).unsqueeze(-1)).to(x.dtype)
