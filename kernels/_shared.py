"""Small pieces that several operators need."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Context in which matrix products of float32 tensors are float32, also under the caller's autocast."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def first_argmax(values: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last axis and the lowest index that holds it.

    Ties are decided here and not left to `argmax`, so that every backend picks the same token.
    """
    best = values.amax(-1, keepdim=True)
    last = values.shape[-1] - 1
    index = torch.arange(last + 1, device=values.device)
    # NaN equals nothing, not even itself: such a row falls back to the last index instead of one out of range.
    return best.squeeze(-1), torch.where(values == best, index, last).amin(-1)


def unit_rows(x: Tensor) -> Tensor:
    """`x` in float32 with every row (last axis) scaled to length 1; a zero row stays zero."""
    x = x.detach().float()
    return x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def check_shape(name: str, tensor: Tensor, *axes: str) -> None:
    """Refuse a tensor with another number of axes.

    Raises:
        ValueError: `tensor` has not one axis per name in `axes`.
    """
    if tensor.ndim != len(axes):
        raise ValueError(f"{name} must have the axes ({', '.join(axes)}), got the shape {tuple(tensor.shape)}.")
