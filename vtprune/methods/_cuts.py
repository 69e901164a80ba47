"""Cuts at several decoder layers: where they fall in a model of any depth, and how many tokens each of them leaves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget, check_keep, token_counts
from vtprune.methods._inputs import VisualTokens
from vtprune.methods._select import check_whole_numbers

DEPTH = 32
"""Decoder layers of the 7B models for which papers name their layers."""


def check_cuts(layers: object, shares: object, count: int) -> tuple[tuple[int, ...] | None, tuple[Budget, ...] | None]:
    """Check the layers at which a method cuts and what each cut leaves, and return tuples; None stays None.

    Args:
        layers: Ascending layers, the first ones with the reduced sets, from 1 on.
        shares: A budget for each of them.
        count: How many there are where `layers` is None.

    Raises:
        TypeError: Something is no number.
        ValueError: The numbers do not fit together.
    """
    cuts: tuple[int, ...] | None = None
    if layers is not None:
        numbers = check_whole_numbers("layers", layers, least=1)
        cuts = (numbers,) if isinstance(numbers, int) else numbers
        if list(cuts) != sorted(set(cuts)):
            raise ValueError(f"layers must ascend, got {layers!r}.")
    if shares is None:
        return cuts, None
    wanted = count if cuts is None else len(cuts)
    if not isinstance(shares, Sequence) or isinstance(shares, str) or len(shares) != wanted:
        raise ValueError(f"shares must be {wanted} budgets, one for every layer, got {shares!r}.")
    return cuts, tuple(check_keep(share, "shares") for share in shares)


def cuts_at(layers: Sequence[int] | None, paper: Sequence[int], depth: int) -> dict[int, int]:
    """Number of the cut at every decoder layer that has one.

    Args:
        layers: The layers that were asked for; None: those of the paper at the same relative depth, rounded, halves up.
        paper: Layers in a model of 32, ascending.
        depth: Decoder layers of the model.

    Returns:
        Layer -> number of the cut. In a shallow model several cuts may fall on one layer: the last of them counts.

    Raises:
        ValueError: A layer is not between the first and the last one.
    """
    if layers is None:
        layers = [min(max(1, int(layer * depth / DEPTH + 0.5)), depth - 1) for layer in paper]
    if not 1 <= layers[0] <= layers[-1] < depth:
        raise ValueError(f"layers must be layers from 1 to {depth - 1} of this model, got {tuple(layers)}.")
    return {layer: number for number, layer in enumerate(layers)}


def arrived_first(tokens: VisualTokens) -> Tensor:
    """(rows, pictures): how many tokens of each picture arrived at the method's first cut of this prefill."""
    first: Tensor = tokens.memory.setdefault("arrived", tokens.arrived)
    return first


def counts_of(share: Budget, arrived: Tensor) -> Tensor:
    """(rows,): how many tokens a share of those that arrived (rows, pictures) is, over all pictures of a row."""
    return token_counts(share, arrived).sum(1)


def counts_by_power(keep: Budget, arrived: Tensor, power: float) -> Tensor:
    """(rows,): how many tokens a cut leaves on the way to `keep`, if cuts leave powers of it.

    Args:
        keep: What the last cut leaves of each picture.
        arrived: (rows, pictures), tokens of each picture before the first cut.
        power: Of the share that is left at the end, in [0, 1]: 1 is the last cut.
    """
    last = token_counts(keep, arrived).double()
    share = last / arrived.clamp_min(1)
    return _rounded(arrived * share**power, last).sum(1)


def counts_by_line(keep: Budget, arrived: Tensor, done: float) -> Tensor:
    """(rows,): how many tokens a cut leaves on the way to `keep`, if `done` of all that leave have left; see above."""
    last = token_counts(keep, arrived).double()
    return _rounded(arrived - (arrived - last) * done, last).sum(1)


def _rounded(count: Tensor, last: Tensor) -> Tensor:
    # Powers are not exact: what is a whole number but for the last digits shall be it.
    return torch.maximum((count - 1e-6).round(), last).long()
