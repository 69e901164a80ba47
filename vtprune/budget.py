"""Budgets: one function turns what a user writes for `keep` into a number of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

Budget = float | int
LayerBudget = Budget | Sequence[Budget]
"""One budget for all decoder layers, or a sequence with one for each."""


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


def check_layer_keep(keep: object) -> Budget | tuple[Budget, ...]:
    """Check a budget, or a sequence with one for every decoder layer, which becomes a tuple."""
    if isinstance(keep, Sequence) and not isinstance(keep, str):
        return tuple(check_keep(budget) for budget in keep)
    return check_keep(keep)


def of_layer(keep: LayerBudget, layer: int) -> Budget:
    """The budget of a decoder layer."""
    return keep[layer] if isinstance(keep, Sequence) else keep


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


def pyramid(
    keep: float, layers: int, beta: float = 20.0, *, most: float | None = None, least: float = 0.0
) -> tuple[Budget, ...]:
    """Budgets that fall from the first decoder layer to the last one in equal steps, with a given mean (PyramidKV).

    Args:
        keep: The mean: a ratio in (0, 1], or a number of tokens above 1, which need not be whole.
        layers: Number of decoder layers.
        beta: How many times smaller than the mean the last budget is, >= 1.
        most: Upper bound of the first budget; None: 1.0 for ratios, no bound for numbers of tokens.
        least: If the last budget falls below it, all layers get the mean.

    Returns:
        Ratios, or whole numbers of tokens (rounded, halves to even, at least 1).

    Raises:
        ValueError: A number is out of range.
    """
    if layers < 1 or beta < 1 or keep <= 0:
        raise ValueError(f"pyramid needs keep > 0, layers >= 1 and beta >= 1, got {keep}, {layers} and {beta}.")
    ratio = not isinstance(keep, int) and keep <= 1
    limit = (1.0 if ratio else math.inf) if most is None else most
    last = max(keep / beta, 2 * keep - limit)
    if last < least or layers == 1:
        last = keep
    first = min(2 * keep - last, limit)
    steps = [first - i * (first - last) / max(layers - 1, 1) for i in range(layers)]
    return tuple(steps) if ratio else tuple(max(1, round(step)) for step in steps)
