"""Which slots of a call are still there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.kernels import gather_rows


class Slots:
    """The slots that are left of those that a call of the language model began with.

    Attributes:
        index: (rows, slots now), original slot of each; None while all are there.
        valid: Bool (rows, slots now), False on padding; None where nothing is padding.
        counts: Per row, number of slots that are no padding.
        width: Slots per row, padding included.
    """

    def __init__(self, width: int, counts: Sequence[int], valid: Tensor | None, index: Tensor | None = None) -> None:
        self.width = width
        self.counts = list(counts)
        self.valid = valid
        self.index = index
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def on(self, x: Tensor) -> Tensor:
        """Values (rows, original slots) of the slots that are left; -1, or False, on padding that came with removals.

        Made once per tensor.
        """
        if self.index is None:
            return x
        if id(x) not in self._seen:
            now = gather_rows(x, self.index)
            if self.valid is not None:
                now = now.masked_fill(~self.valid, False if x.dtype == torch.bool else -1)
            self._seen[id(x)] = (x, now)  # with `x` itself, so that its id is not given away
        return self._seen[id(x)][1]
