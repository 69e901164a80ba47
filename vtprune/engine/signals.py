"""What a stage may ask of the decoder layer before it, computed afterwards from hidden states and cached keys."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from vtprune.attention import NAME, Request, request, take
from vtprune.engine.slots import Slots
from vtprune.engine.visual import Visual
from vtprune.integrations.base import Integration
from vtprune.kernels import attention_scores, compact_index, gather_rows
from vtprune.methods.base import QueriesKeys

Rotation = tuple[Tensor, Tensor]  # cos and sin, (rows, slots, head_dim)


@dataclasses.dataclass
class Asked:
    """A layer's attention call that will itself say what its keys received (attn_implementation="vtprune")."""

    layer: int
    module: nn.Module
    length: int  # slots in this layer
    slots: Tensor | None = None  # (rows, slots now), where each slot stood in this layer; None as long as all are there

    @staticmethod
    def by(signal: str, layer: int, module: nn.Module, hidden: Tensor, picture: Tensor, slots: Slots) -> Asked:
        """Ask; see `Captured.of`."""
        rows, row_valid = query_rows(signal, picture, slots.valid)
        request(module, Request(rows if row_valid is None else rows.masked_fill(~row_valid, -1)))
        return Asked(layer, module, hidden.shape[1])

    def compact(self, index: Tensor) -> None:
        """Follow a removal: (rows, slots now), where the remaining slots stood before it."""
        self.slots = index if self.slots is None else self.slots.gather(1, index.to(self.slots.device))

    def attention(self, integration: Integration, cached: Tensor | None, valid: Tensor | None) -> Tensor:
        """Attention that the query rows gave the slots that are still there, (rows, slots now)."""
        (received,) = take(self.module)
        scores = received.scores[:, -self.length :]
        return scores if self.slots is None else gather_rows(scores, self.slots)


@dataclasses.dataclass
class Captured:
    """What a layer's attention saw, as far as the next layer's stage needs it: its query rows, and its keys' source."""

    layer: int
    rows: Tensor | None  # (rows, n), slots of the queries; None for the last slot of every row
    row_valid: Tensor | None  # bool (rows, n), None for all
    queries: Tensor  # (rows, n, width), normalised hidden states
    rotation: Rotation  # of the queries
    slots: Tensor | None  # (rows, slots now), where each slot stood in this layer; None as long as all are there
    length: int  # slots in this layer
    everything: tuple[Tensor, Rotation] | None  # all normalised hidden states and rotations, only without a cache

    @staticmethod
    def of(
        signal: str,
        layer: int,
        hidden: Tensor,
        rotation: Rotation,
        picture: Tensor,
        slots: Slots,
        *,
        without_cache: bool,
    ) -> Captured:
        """Note what a signal will need.

        Args:
            signal: "last_query" or "text_queries".
            layer: The layer whose attention it is about.
            hidden: (rows, slots, width), its normalised hidden states.
            rotation: Of all slots.
            picture: (rows, slots), number of the slot's picture, -1 on text and padding.
            slots: The slots that are there.
            without_cache: Whether the keys have to be made again.
        """
        rows = row_valid = None
        if signal == "last_query" and slots.valid is None:
            queries, (cos, sin) = hidden[:, -1:], (x[:, -1:] for x in rotation)
        else:
            rows, row_valid = query_rows(signal, picture, slots.valid)
            queries = gather_rows(hidden, rows)
            cos, sin = (gather_rows(x, rows) for x in rotation)
        everything = (hidden, rotation) if without_cache else None
        return Captured(layer, rows, row_valid, queries, (cos, sin), None, hidden.shape[1], everything)

    def compact(self, index: Tensor) -> None:
        """Follow a removal: (rows, slots now), where the remaining slots stood before it."""
        self.slots = index if self.slots is None else self.slots.gather(1, index.to(self.slots.device))

    def attention(self, integration: Integration, cached: Tensor | None, valid: Tensor | None) -> Tensor:
        """Attention that the query rows gave the slots that are still there, (rows, slots now).

        Args:
            integration: The model's family.
            cached: Keys in the layer's cache, (rows, kv_heads, past + slots, head_dim); None without a cache.
            valid: Bool (rows, past + slots), False on padding; None without padding.
        """
        layer = integration.decoder_layers[self.layer]
        with torch.no_grad():
            queries = integration.decoder_queries(layer, self.queries, *self.rotation)
            if cached is not None:
                keys = cached.detach().to(queries.device)
            elif self.everything is not None:
                keys = integration.decoder_keys(layer, self.everything[0], *self.everything[1])
            past = keys.shape[2] - self.length
            scores = attention_scores(
                queries,
                keys,
                scale=integration.decoder_scale(layer),
                row_mask=None if self.row_valid is None else self.row_valid.to(keys.device),
                row_positions=None if self.rows is None else self.rows.to(keys.device) + past,
                key_valid=None if valid is None else valid.to(keys.device),
            )[:, past:]
        return scores if self.slots is None else gather_rows(scores, self.slots)


@dataclasses.dataclass
class Whole:
    """Everything that a layer's attention works on."""

    layer: int
    hidden: Tensor  # (rows, slots, width), normalised hidden states
    rotation: Rotation  # of all slots
    slots: Tensor | None = None  # (rows, slots now), where each slot stood in this layer; None as long as all are there

    def compact(self, index: Tensor) -> None:
        """Follow a removal: (rows, slots now), where the remaining slots stood before it."""
        self.slots = index if self.slots is None else self.slots.gather(1, index.to(self.slots.device))

    def queries_keys(
        self, integration: Integration, cached: Tensor | None, valid: Tensor | None, at: Tensor
    ) -> QueriesKeys:
        """Queries and keys of all slots.

        Args:
            integration: The model's family.
            cached: Keys in the layer's cache, (rows, kv_heads, past + slots, head_dim); None without a cache.
            valid: Bool (rows, past + slots), False on padding; None without padding.
            at: (rows, tokens), where the visual tokens stand now.
        """
        layer = integration.decoder_layers[self.layer]
        queries = integration.decoder_queries(layer, self.hidden, *self.rotation)
        keys = integration.decoder_keys(layer, self.hidden, *self.rotation) if cached is None else cached.detach()
        there = None if valid is None else valid.to(queries.device)
        if self.slots is not None:
            at = self.slots.gather(1, at.to(self.slots.device))
        scale = integration.decoder_scale(layer)
        return QueriesKeys(queries, keys.to(queries.device), scale, there, at.to(queries.device))


class Signals:
    """What stages ask of the layer before theirs, from its attention to the next layer's input."""

    def __init__(self, integration: Integration) -> None:
        self.integration = integration
        self.captured: dict[str, Asked | Captured | Whole] = {}

    def capture(
        self,
        layer: int,
        signal: str,
        hidden: Tensor,
        rotation: Rotation,
        picture: Tensor,
        slots: Slots,
        without_cache: bool,
    ) -> None:
        """Note what a signal will need; see `Captured.of`."""
        if signal == "queries_keys":
            self.captured[signal] = Whole(layer, hidden, rotation)
            return
        implementation = self.integration.language_model.config._attn_implementation
        answering = any(isinstance(x, Asked) and x.layer == layer for x in self.captured.values())
        if implementation == NAME and not answering:
            module = self.integration.decoder_layers[layer].get_submodule("self_attn")
            self.captured[signal] = Asked.by(signal, layer, module, hidden, picture, slots)
            return
        self.captured[signal] = Captured.of(
            signal, layer, hidden, rotation, picture, slots, without_cache=without_cache
        )

    def compact(self, index: Tensor) -> None:
        """Follow a removal: (rows, slots now), where the remaining slots stood before it."""
        for captured in self.captured.values():
            captured.compact(index)

    def clear(self) -> None:
        """Forget what was captured."""
        self.captured = {}

    def attention(self, signal: str, cached: Tensor | None, valid: Tensor | None, visual: Visual) -> Tensor:
        """Attention that the captured query rows gave each visual slot, (rows, tokens); 0 on padding."""
        captured = self.captured[signal]
        if isinstance(captured, Whole):
            raise TypeError(f"{signal!r} is no attention of query rows.")
        scores = gather_rows(captured.attention(self.integration, cached, valid), visual.at)
        return scores if visual.valid is None else scores.masked_fill(~visual.valid.to(scores.device), 0)

    def queries_keys(self, cached: Tensor | None, valid: Tensor | None, visual: Visual) -> QueriesKeys:
        """All that the captured layer's attention worked on."""
        captured = self.captured["queries_keys"]
        if not isinstance(captured, Whole):
            raise TypeError("queries and keys were not captured whole.")
        return captured.queries_keys(self.integration, cached, valid, visual.at)


def query_rows(signal: str, picture: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Slots whose attention a signal is about, (rows, n), and which of them count, None for all.

    Args:
        signal: "last_query" or "text_queries".
        picture: (rows, slots), number of the slot's picture, -1 on text and padding.
        valid: Bool (rows, slots), False on padding; None without padding.
    """
    if signal == "last_query":
        length = picture.shape[1]
        if valid is None:
            return torch.full((len(picture), 1), length - 1, device=picture.device), None
        return (length - 1 - valid.flip(1).long().argmax(1))[:, None], None
    text = picture < 0 if valid is None else valid & (picture < 0)
    return compact_index(text & ((picture >= 0).long().cumsum(1) > 0))
