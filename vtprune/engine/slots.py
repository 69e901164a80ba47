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

    def moved(self, device: torch.device) -> Slots:
        """The same on another device."""
        valid, index = (None if x is None else x.to(device) for x in (self.valid, self.index))
        return Slots(self.width, self.counts, valid, index)

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


def arrived(
    label: str,
    rows: int,
    length: int,
    mask: Tensor | None,
    on_host: Tensor | None,
    padded_before: bool,
    device: torch.device,
) -> Slots:
    """The slots of a call of the language model, all of them.

    Args:
        label: The methods by name, for the error.
        rows: Rows of the batch.
        length: Slots per row.
        mask: Bool or int (rows, earlier + slots), 0 on padding, or None.
        on_host: Copy of it, if there is one already.
        padded_before: Whether the slots of earlier calls are known to have padding among them.
        device: Where the slots are.

    Raises:
        ValueError: The mask is of another kind.
    """
    everything = [length] * rows
    if mask is None:
        return Slots(length, everything, None)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise ValueError(
            f"{label} needs a 2-D attention mask (rows, slots), got "
            f"{f'{mask.ndim}-D' if isinstance(mask, Tensor) else type(mask).__name__}; static and other compilable "
            "caches make 4-D masks: use a DynamicCache, and no mask of your own."
        )
    valid = mask[:, -length:].bool().to(device)
    if length == 1 and padded_before:
        return Slots(1, everything, valid)  # decoding: not worth a look, the earlier padding needs a mask anyway
    seen = valid if on_host is None else on_host[:, -length:].bool()
    counts = seen.sum(1).tolist()
    return Slots(length, counts, None if counts == everything else valid)
