"""The tokens of a vision tower's tiles, as its blocks merge and drop them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vtprune.kernels import compact_index, gather_rows, merge_by_owner
from vtprune.methods.base import Group, Keep

DROPPED = -2
"""Owner of a patch whose token was dropped; -1 stands for newlines."""


class Running:
    """Tokens that run through the tower; tiles are the rows of its batch.

    Attributes:
        sizes: (tiles, tokens now), patches per token, 0 on padding; None while every token is one patch.
        owner: (tiles, tokens at first), the token that each has become part of, `DROPPED` if none; None as `sizes`.
        ragged: Whether some tiles have fewer tokens than others, and padding behind them.
    """

    def __init__(self) -> None:
        self.sizes: Tensor | None = None
        self.owner: Tensor | None = None
        self.ragged = False

    def beside(self, x: Tensor) -> Running:
        """Itself, on the device of a tensor: blocks may be on several."""
        if self.owner is not None and self.sizes is not None and self.owner.device != x.device:
            self.owner, self.sizes = self.owner.to(x.device), self.sizes.to(x.device)
        return self

    def sizes_of(self, hidden: Tensor) -> Tensor:
        """(tiles, tokens), patches per token."""
        return hidden.new_ones(hidden.shape[:2], dtype=torch.float32) if self.sizes is None else self.sizes

    def follow(self, decision: Group | Keep, *values: Tensor) -> list[Tensor]:
        """Carry out a decision on values per token, (tiles, tokens, channels) each."""
        step = self._merge(decision, values) if isinstance(decision, Group) else self._drop(decision, values)
        if self.owner is None:
            self.owner = step.owner
        else:
            gone = self.owner == DROPPED
            self.owner = step.owner.gather(1, self.owner.clamp_min(0)).masked_fill(gone, DROPPED)
        self.sizes = step.sizes
        return step.values

    def _merge(self, decision: Group, values: tuple[Tensor, ...]) -> _Step:
        sizes = self.sizes_of(values[0])
        owner = decision.owner
        if decision.keep is not None:
            sizes = sizes * decision.keep
            owner = owner.masked_fill(~decision.keep, DROPPED)
        weights = sizes if decision.weighted else (sizes > 0).to(sizes.dtype)
        merged = [merge_by_owner(x, decision.owner, decision.groups, weights)[0] for x in values]
        new_sizes = decision.sizes
        if new_sizes is None:
            new_sizes = sizes.new_zeros(len(sizes), decision.groups).scatter_add_(1, decision.owner, sizes)
        if decision.ragged:
            self.ragged = True
        return _Step(merged, owner, new_sizes)

    def _drop(self, decision: Keep, values: tuple[Tensor, ...]) -> _Step:
        sizes = self.sizes_of(values[0])
        keep = decision.mask & (sizes > 0)
        # Aligned at their ends in a left-padded batch; here the class token must stay first, so padding goes behind.
        index, valid = compact_index(keep.flip(1))
        index = (keep.shape[1] - 1 - index).flip(1)
        owner = (keep.cumsum(1) - 1).masked_fill(~keep, DROPPED)
        new_sizes = gather_rows(sizes, index)
        if valid is not None:
            self.ragged = True
            new_sizes = new_sizes.masked_fill(~valid.flip(1), 0)
        return _Step([gather_rows(x, index) for x in values], owner, new_sizes)

    def key_bias(self, proportional: bool) -> Tensor | None:
        """(tiles, tokens), what is added to attention logits: log(size), minus infinity on padding; None for nothing.

        Args:
            proportional: Whether keys are weighed by size; if not, padding alone counts.
        """
        if self.sizes is None or not (proportional or self.ragged):
            return None
        if proportional:
            return self.sizes.log()
        return torch.zeros_like(self.sizes).masked_fill(self.sizes == 0, -torch.inf)


class _Step(NamedTuple):
    values: list[Tensor]
    owner: Tensor  # (tiles, tokens before), the token that each becomes part of
    sizes: Tensor  # (tiles, tokens after)
