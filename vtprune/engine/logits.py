"""What callers said about slots that are no more: positions of logits, labels."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.engine.slots import Slots
from vtprune.kernels import gather_rows


def keep_logits(wanted: Tensor, slots: Slots, length: int, methods: str) -> None:
    """Rewrite positions, or a mask, of the original slots in place to those that are left.

    Args:
        wanted: (n,) or (rows, n) positions, or a bool mask of the original slots.
        slots: The slots that are left.
        length: Number of original slots.
        methods: What removed the others, for the message.

    Raises:
        ValueError: A position was removed, or differs between the rows.
    """
    if slots.index is None:
        return
    index, device = slots.index, slots.index.device
    rows = len(index)
    numbers = torch.arange(slots.width, device=device).expand(rows, -1)
    valid = slots.valid if slots.valid is not None else torch.ones_like(numbers, dtype=torch.bool)
    if wanted.dtype == torch.bool:
        left = gather_rows(wanted.to(device), index) & valid
        wanted.set_(left.to(wanted.device))  # type: ignore[call-overload]
        return
    # Padding writes where the last slot, which is never padding, writes the same.
    index, numbers = (torch.where(valid, x, x[:, -1:]) for x in (index, numbers))
    new = torch.full((rows, length), -1, device=device).scatter(1, index, numbers)
    positions = (wanted.to(device) % length).expand(rows, -1)
    moved = new.gather(1, positions)
    if bool((moved < 0).any()):
        gone = sorted(set(positions[moved < 0].tolist()))
        raise ValueError(f"logits_to_keep asks for positions {gone}, which {methods} removed.")
    if wanted.ndim == 1:
        if bool((moved != moved[:1]).any()):
            raise ValueError(
                "logits_to_keep asks for the same positions in all rows, but rows kept different numbers of "
                "tokens; pass one row of positions per sample, or an int."
            )
        moved = moved[0]
    wanted.copy_(moved)


def surviving_labels(labels: Tensor, slots: Slots) -> Tensor:
    """Labels (rows, original slots) on the slots that are left; padding and what follows it are ignored."""
    if slots.index is None:
        return labels
    kept = gather_rows(labels, slots.index)
    if slots.valid is not None:
        valid = slots.valid.to(labels.device)
        follows = torch.cat((torch.ones_like(valid[:, :1]), valid[:, :-1]), dim=1)
        kept = kept.masked_fill(~(valid & follows), -100)
    return kept
