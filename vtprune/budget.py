"""Budgets: one function turns what a user writes for `keep` into a number of tokens."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

Budget = float | int


def check_keep(keep: object, name: str = "keep") -> Budget:
    """Check a budget and return it as a plain `float` (ratio) or `int` (number of tokens).

    Args:
        keep: A ratio in (0, 1], written as a float, or a whole number of tokens >= 1, written as an int.
            `1.0` keeps everything; `1` keeps one token.
        name: What the error calls it.

    Raises:
        TypeError: `keep` is no number.
        ValueError: `keep` is zero, negative, NaN, or a float above 1.
    """
    things = "tokens" if name == "keep" else name
    allowed = f"{name} must be a ratio in (0, 1] or a whole number of {things} >= 1"
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(f"{allowed}, got {keep!r} of type {type(keep).__name__}; for 25 percent write {name}=0.25.")
    if isinstance(keep, Integral):
        if keep < 1:
            raise ValueError(f"{allowed}, got {int(keep)}.")
        return int(keep)
    ratio = float(keep)
    if math.isnan(ratio) or ratio <= 0:
        raise ValueError(f"{allowed}, got {ratio}; for 25 percent write {name}=0.25.")
    if ratio > 1:
        percent = (ratio, ratio / 100) if ratio <= 100 else (25, 0.25)
        hint = f"for {percent[0]:g} percent write {name}={percent[1]:g}"
        raise ValueError(f"{allowed}, got {ratio}; {hint}, for a number of {things} write a whole number.")
    return ratio


def token_count(keep: Budget, tokens: int) -> int:
    """Number of tokens that `keep` allows of `tokens`.

    A ratio is rounded to the nearest whole number, halves to even, and keeps at least one token. A number of tokens
    above `tokens` keeps them all.
    """
    if tokens <= 0:
        return 0
    count = int(keep) if isinstance(keep, int) else round(keep * tokens)
    return max(1, min(count, tokens))


def token_counts(keep: Budget, tokens: Tensor) -> Tensor:
    """`token_count` of every element of an integer tensor, on its device."""
    if isinstance(keep, int):
        return tokens.clamp_max(keep)
    precise = torch.float32 if tokens.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    count = (tokens.to(precise) * keep).round().to(tokens.dtype)
    return torch.minimum(count.clamp_min(1), tokens)
