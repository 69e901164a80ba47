"""Numbers per slot that stages wanted to be noted of the decoder layers before theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.engine.slots import Slots
from vtprune.engine.visual import Visual
from vtprune.kernels import gather_rows
from vtprune.methods.base import Observation


class Observed:
    """What was noted in one call of the language model, for every slot that is left."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, int], Tensor] = {}  # by method, module and layer: (rows, slots now)

    def note(
        self, method: str, observation: Observation, layer: int, given: Tensor, output: Tensor, slots: Slots
    ) -> None:
        """Measure a part of a layer that has just run.

        Args:
            method: Who asked.
            observation: What for.
            layer: The layer.
            given: (rows, slots now, width), the part's input.
            output: (rows, slots now, width), its output.
            slots: The slots that are left.
        """
        with torch.no_grad():
            valid = None if slots.valid is None else slots.valid.to(output.device)
            values = observation.measure(given.detach(), output.detach(), valid)
        if values.shape != output.shape[:2]:
            raise TypeError(f"{method}: an observation must measure one number per slot, got {tuple(values.shape)}.")
        self.values[method, observation.module, layer] = values

    def compact(self, index: Tensor) -> None:
        """Follow a removal: (rows, slots now), where the remaining slots stood before it."""
        self.values = {key: gather_rows(x, index.to(x.device)) for key, x in self.values.items()}

    def of(self, method: str, visual: Visual) -> dict[tuple[str, int], Tensor]:
        """By module and layer, what a method's observations say about the visual tokens, (rows, tokens)."""
        return {
            (module, layer): gather_rows(x.to(visual.at.device), visual.at)
            for (who, module, layer), x in self.values.items()
            if who == method
        }
