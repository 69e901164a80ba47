"""What a decoder layer gets beside its hidden states: a mask and position embeddings for the slots that are left."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtprune.compat import build_mask
from vtprune.engine.cache import Rows
from vtprune.engine.devices import moved
from vtprune.integrations.base import Integration


class LayerInputs:
    """Makes them once for all layers that share them, until slots leave.

    Attributes:
        masks: Attention masks, by the layers' `Rows`.
        embeddings: Position embeddings, by what the layers' positions were shifted by, and the number of slots.
    """

    def __init__(self, integration: Integration) -> None:
        self.integration = integration
        self.masks: dict[int, Any] = {}
        self.embeddings: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def clear(self) -> None:
        """Forget everything, as slots have left."""
        self.masks.clear()
        self.embeddings.clear()

    def mask(self, rows: Rows, past: int, batch: int, width: int, hidden: Tensor) -> Any:
        """The mask of a layer.

        Args:
            rows: What its cache holds and what it gets.
            past: Slots that its cache held before.
            batch: Rows of the batch.
            width: Slots that it gets per row.
            hidden: Its input, for dtype and device.
        """
        if id(rows) not in self.masks:
            config = self.integration.language_model.config
            valid = None if rows.valid is None else rows.valid.to(hidden.device)
            self.masks[id(rows)] = build_mask(config, hidden.new_empty(batch, width, 1), valid, past)
        return moved(self.masks[id(rows)], hidden.device)

    def rotation(
        self, positions: Tensor, own: Tensor | None, first: Tensor | None, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a layer's positions.

        Args:
            positions: (axes, rows, slots now), those of the first layer's history.
            own: (rows,), by how much the layer's positions were smaller before this call; None for nothing.
            first: The same of the first layer.
            hidden: Its input, for dtype and device.
        """
        key = (id(own), positions.shape[-1])
        if key not in self.embeddings:
            if own is not None and own is not first:
                positions = positions - own[:, None].to(positions.device)
            if first is not None and own is not first:
                positions = positions + first[:, None].to(positions.device)
            if self.integration.position_axes == 1:
                positions = positions[0]
            elif len(positions) > self.integration.position_axes:
                positions = positions[1:]  # without the plain count
            cos, sin = self.integration.language_model.rotary_emb(hidden, position_ids=positions.to(hidden.device))
            self.embeddings[key] = cos.to(hidden.device), sin.to(hidden.device)
        cos, sin = self.embeddings[key]
        return cos.to(hidden.device), sin.to(hidden.device)
