"""Numbers in few bits: codes between the least and the greatest of a group, several to a byte."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vtprune.kernels._shared import check_shape

WIDTHS = (2, 4, 8)
"""Bits that a code may have."""


class Codes(NamedTuple):
    """A tensor (rows, n, channels) in few bits: `low + step * code`.

    Attributes:
        packed: uint8, (rows, n, bytes), see `pack_codes`.
        low: What code 0 stands for, (rows, 1, channels) or (rows, n, 1), of the type that the tensor had.
        step: How far codes are apart, likewise.
        bits: Of each code.
        channels: Codes of each row of bytes.
    """

    packed: Tensor
    low: Tensor
    step: Tensor
    bits: int
    channels: int


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Put codes of 2 or 4 bits together: the first byte holds the first channel of every part.

    The channels are cut into 8 / bits equal parts, filled up with zeros; the first part takes the lowest bits.

    Args:
        codes: uint8, (..., channels), below 2 ** bits.
        bits: 2, 4 or 8.

    Returns:
        uint8, (..., bytes).
    """
    _check_bits(bits)
    per_byte = 8 // bits
    if per_byte == 1:
        return codes
    filled = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % per_byte))
    parts = filled.unflatten(-1, (per_byte, -1))
    packed = parts[..., 0, :].clone()
    for i in range(1, per_byte):
        packed |= parts[..., i, :] << (bits * i)
    return packed


def unpack_codes(packed: Tensor, bits: int, channels: int) -> Tensor:
    """Undo `pack_codes`: uint8, (..., bytes) to (..., channels)."""
    _check_bits(bits)
    if bits == 8:
        return packed
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.cat(parts, -1)[..., :channels]


def quantise(
    x: Tensor, bits: int, per: Literal["channel", "token"], valid: Tensor | None = None, scale: Tensor | None = None
) -> Codes:
    """Round numbers to 2 ** bits equally far ones between the least and the greatest of their group.

    Halves are rounded to even. Codes are made with `low` and `step` as they are held, in the type of `x`; a group of
    equal numbers has step 0 and comes back as it was.

    Args:
        x: (rows, n, channels).
        bits: 2, 4 or 8.
        per: What a group is: all tokens of a "channel", or all channels of a "token". Rows never share one.
        valid: bool, (rows, n), False on padding, which belongs to no group; None without.
        scale: (rows, 1, channels), by which numbers are divided first; None for 1.
    """
    _check_bits(bits)
    check_shape("x", x, "rows", "n", "channels")
    wide = x.float() if scale is None else x.float() / scale.float()
    axis = 1 if per == "channel" else 2
    least, most = wide, wide
    if valid is not None:
        padding = ~valid[..., None]
        least, most = wide.masked_fill(padding, torch.inf), wide.masked_fill(padding, -torch.inf)
    least, most = _extreme(least, axis, False), _extreme(most, axis, True)
    there = least <= most
    least, most = least.where(there, 0), most.where(there, 0)
    low, step = least.to(x.dtype), ((most - least) / (2**bits - 1)).to(x.dtype)
    divisor = step.float()
    codes = (wide - low.float()) / divisor.where(divisor > 0, 1)
    codes = codes.round().nan_to_num(0).clamp(0, 2**bits - 1).to(torch.uint8)
    return Codes(pack_codes(codes, bits), low, step, bits, x.shape[2])


def dequantise(codes: Codes, scale: Tensor | None = None) -> Tensor:
    """What codes stand for, (rows, n, channels), in the type that was quantised; `scale` as given to `quantise`."""
    numbers = unpack_codes(codes.packed, codes.bits, codes.channels).float()
    numbers = numbers.mul_(codes.step.float()).add_(codes.low.float())
    return (numbers if scale is None else numbers.mul_(scale.float())).to(codes.low.dtype)


def channel_scale(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Square root of the greatest magnitude of every channel of x (rows, n, channels): (rows, 1, channels), above 0.

    Args:
        x: What will be divided by it, so that one channel does not stretch the range of all others.
        valid: bool, (rows, n), False on padding; None without.
    """
    size = x.float().abs()
    if valid is not None:
        size = size.masked_fill(~valid[..., None], 0)
    scale = _extreme(size, 1, True).clamp_min(0).sqrt().to(x.dtype)
    return scale.where(scale > 0, 1)


def _extreme(x: Tensor, axis: int, greatest: bool) -> Tensor:
    """Least or greatest along an axis, which may be empty."""
    if x.shape[axis] == 0:
        shape = [1 if i == axis else n for i, n in enumerate(x.shape)]
        return x.new_full(shape, -torch.inf if greatest else torch.inf)
    return x.amax(axis, keepdim=True) if greatest else x.amin(axis, keepdim=True)


def _check_bits(bits: int) -> None:
    if bits not in WIDTHS:
        raise ValueError(f"bits must be one of {', '.join(map(str, WIDTHS))}, got {bits!r}.")
