"""What several methods need: top-k per row with decided ties, masks from indices, checks with readable messages."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def top_k_mask(scores: Tensor, counts: int | Tensor, valid: Tensor | None = None) -> Tensor:
    """Mark the highest scores of every row.

    Among equal scores the lower index wins. NaN ranks below every number. A row never gets more than its valid tokens.

    Args:
        scores: (rows, tokens).
        counts: How many to mark, one number for all rows or one per row (rows,).
        valid: bool, (rows, tokens), True for the tokens that may be marked; all if None.

    Returns:
        bool, (rows, tokens).
    """
    scores = scores.detach()
    nan = scores.isnan()
    order = scores.masked_fill(nan, -torch.inf).argsort(dim=1, descending=True, stable=True)
    # A second stable sort moves NaN behind all numbers (also behind minus infinity), and padding behind NaN.
    rank = nan.to(torch.int8) if valid is None else torch.where(valid, nan.to(torch.int8), 2)
    order = order.gather(1, rank.gather(1, order).argsort(dim=1, stable=True))
    limits = counts.to(scores.device).unsqueeze(1) if isinstance(counts, Tensor) else counts
    wanted = torch.arange(scores.shape[1], device=scores.device) < limits
    mask = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, wanted.expand_as(order))
    return mask if valid is None else mask & valid


def index_mask(index: Tensor, tokens: int) -> Tensor:
    """Turn chosen indices (pictures, n) into a bool mask (pictures, tokens)."""
    mask = torch.zeros((index.shape[0], tokens), dtype=torch.bool, device=index.device)
    return mask.scatter_(1, index, True)


def given(signal: T | None, method: str, name: str) -> T:
    """Return a signal that the method asked for.

    Raises:
        ValueError: It is missing.
    """
    if signal is None:
        raise ValueError(f"method {method!r} needs the signal {name!r}, but got None.")
    return signal


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value that is not one of the allowed ones.

    Raises:
        ValueError: `value` is not in `allowed`.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def check_number(name: str, value: object, low: float, high: float, *, above_low: bool = False) -> None:
    """Refuse a value that is no number in [low, high], or in (low, high] if it must be above `low`.

    Raises:
        TypeError: `value` is no number.
        ValueError: It is out of range, or NaN.
    """
    allowed = f"{name} must be a number in {'(' if above_low else '['}{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{allowed}, got {value!r} of type {type(value).__name__}.")
    number = float(value)
    if not low <= number <= high or (above_low and number == low):
        raise ValueError(f"{allowed}, got {value!r}.")


def check_whole_numbers(name: str, value: object, least: int, count: int | None = None) -> int | tuple[int, ...]:
    """Check a whole number or a sequence of them (of length `count` if given), and return an `int` or a tuple.

    Raises:
        TypeError: `value` is neither.
        ValueError: A number is below `least`, or there are too few or too many.
    """
    several = "a sequence of them" if count is None else f"a sequence of {count}"
    allowed = f"{name} must be a whole number >= {least} or {several}"
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    if isinstance(value, str) or not all(type(n) is int for n in numbers):
        raise TypeError(f"{allowed}, got {value!r}.")
    if not numbers or min(numbers) < least or (isinstance(value, Sequence) and count not in (None, len(numbers))):
        raise ValueError(f"{allowed}, got {value!r}.")
    return numbers if isinstance(value, Sequence) else numbers[0]
