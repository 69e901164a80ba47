"""Tokens that pass by some decoder layers: such a layer runs on the others, and behind it all are there again.

What passes by keeps its hidden state. The layer's cache holds the tokens that ran, so that decoding attends to these;
all layers that tokens pass by share one history of padding and removals.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from vtprune.engine.cache import Rows
from vtprune.engine.layer_inputs import LayerInputs
from vtprune.engine.slots import Slots
from vtprune.integrations.base import Integration
from vtprune.kernels import compact_index, gather_rows


class Short:
    """The slots of a layer that others pass by.

    Attributes:
        slots: Those that run.
        positions: (axes, rows, slots that run).
        runs: Bool (rows, all slots now), which they are.
        inputs: Masks and position embeddings of such layers.
    """

    def __init__(
        self, runs: Tensor, counts: list[int], slots: Slots, positions: Tensor, integration: Integration
    ) -> None:
        width = max(counts)
        padded = width != min(counts)
        self.runs = runs
        self.index, valid = compact_index(runs, width=width, padded=padded)  # (rows, slots that run)
        self.place = (runs.long().cumsum(1) + width - runs.sum(1, keepdim=True) - 1).clamp_min(0)  # padding comes first
        original = self.index if slots.index is None else slots.index.gather(1, self.index)
        self.slots = Slots(width, counts, valid, original)
        self.positions = gather_rows(positions.movedim(0, -1), self.index).movedim(-1, 0)
        if valid is not None:
            self.positions = self.positions.masked_fill(~valid, 0)
        self.inputs = LayerInputs(integration)

    def move(self, device: torch.device) -> None:
        """Go to another device."""
        self.runs, self.index, self.place = (x.to(device) for x in (self.runs, self.index, self.place))
        self.slots, self.positions = self.slots.moved(device), self.positions.to(device)
        self.inputs.clear()

    def take(self, hidden: Tensor) -> Tensor:
        """Hidden states (rows, all slots now, width) of those that run."""
        return gather_rows(hidden, self.index)

    def put_back(self, ran: Tensor, hidden: Tensor) -> Tensor:
        """What came out of the layer for those that ran, among the unchanged states of the others."""
        runs = self.runs.to(ran.device).unsqueeze(-1)
        return torch.where(runs, gather_rows(ran, self.place.to(ran.device)), hidden.to(ran.device))


class Skipping:
    """What passes by decoder layers in one call of the language model.

    Args:
        runs: Bool (rows, slots of the call), False on those that pass by.
        layers: The layers that they pass by.
    """

    def __init__(self, runs: Tensor, layers: Collection[int]) -> None:
        self.runs = runs
        self.layers = layers
        self._seen: tuple[Slots, Short | None] | None = None
        self._shorter: dict[Rows, Rows] = {}  # histories of layers that tokens pass by, from those before

    def move(self, device: torch.device, before: Slots, after: Slots) -> None:
        """Go to another device, where the slots that are left are `after`."""
        self.runs = self.runs.to(device)
        if self._seen is not None and self._seen[0] is before:
            short = self._seen[1]
            if short is not None:
                short.move(device)
            self._seen = after, short

    def short(self, slots: Slots, positions: Tensor, integration: Integration) -> Short | None:
        """What runs of the slots that are left; None if all do. The host waits once for each set of slots."""
        if self._seen is None or self._seen[0] is not slots:
            runs = slots.on(self.runs)
            if slots.valid is not None:
                runs = runs & slots.valid
            counts = runs.sum(1).tolist()
            alike = counts == slots.counts
            self._seen = slots, None if alike else Short(runs, counts, slots, positions, integration)
            self._shorter = {}
        return self._seen[1]

    def rows_of(self, layer: int, rows: Sequence[Rows], short: Short, past: int, removed: int, end: int) -> Rows:
        """The history of a layer that tokens pass by.

        Args:
            layer: The layer.
            rows: Those of all layers until now.
            short: What runs.
            past: Slots that the layer held before this call.
            removed: How many slots fewer it gets than the others.
            end: Behind the last slot that may pass by, counted from the beginning of the conversation.
        """
        now = rows[layer]
        if now in self._shorter.values():
            return now
        if now not in self._shorter:
            others = [i for i, x in enumerate(rows) if x is now and i not in self.layers]
            own = now.split(layer) if others else now
            if others:
                now.leader = others[0]
            valid = short.slots.valid
            own.replace_tail(len(short.runs), past, short.slots.width, valid, short.runs.device)
            own.removed += removed
            own.removal_end = max(end, own.removal_end)
            self._shorter[now] = own
        return self._shorter[now]
