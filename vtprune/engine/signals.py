"""What a stage may ask of the decoder layer before it, computed afterwards from hidden states and cached keys.

And of the layer that is about to run: what its query rows would attend to, by its own norm, projections and positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import torch
from torch import Tensor, nn

from vtprune.attention import NAME, Request, request, take
from vtprune.engine.slots import Slots
from vtprune.engine.visual import Visual
from vtprune.integrations.base import Integration
from vtprune.kernels import attention_scores, compact_index, gather_rows
from vtprune.methods.base import QueriesKeys, TextRows

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
    turned: Rotation  # of all slots
    everything: Tensor | None  # all normalised hidden states, where keys are in no cache

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
            signal: Whose queries; see `query_rows`.
            layer: The layer whose attention it is about.
            hidden: (rows, slots, width), its normalised hidden states.
            rotation: Of all slots.
            picture: (rows, slots), number of the slot's picture, -1 on text and padding.
            slots: The slots that are there.
            without_cache: Whether the keys of these slots have to be made, as no cache holds them.
        """
        rows = row_valid = None
        if signal == "last_query" and slots.valid is None:
            queries, (cos, sin) = hidden[:, -1:], (x[:, -1:] for x in rotation)
        else:
            rows, row_valid = query_rows(signal, picture, slots.valid)
            queries = gather_rows(hidden, rows)
            cos, sin = (gather_rows(x, rows) for x in rotation)
        everything = hidden if without_cache else None
        return Captured(layer, rows, row_valid, queries, (cos, sin), None, hidden.shape[1], rotation, everything)

    def compact(self, index: Tensor) -> None:
        """Follow a removal: (rows, slots now), where the remaining slots stood before it."""
        self.slots = index if self.slots is None else self.slots.gather(1, index.to(self.slots.device))

    def attention(self, integration: Integration, cached: Tensor | None, valid: Tensor | None) -> Tensor:
        """Attention that the query rows gave the slots that are still there, (rows, slots now).

        Args:
            integration: The model's family.
            cached: Keys in the layer's cache, (rows, kv_heads, keys, head_dim): all, or those of earlier calls where
                the others have to be made; None if there are none.
            valid: Bool (rows, past + slots), False on padding; None without padding.
        """
        with torch.no_grad():
            queries, keys = self._queries_keys(integration, cached)
            past = keys.shape[2] - self.length
            scores = attention_scores(
                queries,
                keys,
                scale=integration.decoder_scale(integration.decoder_layers[self.layer]),
                row_mask=None if self.row_valid is None else self.row_valid.to(keys.device),
                row_positions=None if self.rows is None else self.rows.to(keys.device) + past,
                key_valid=None if valid is None else valid.to(keys.device),
            )[:, past:]
        return scores if self.slots is None else gather_rows(scores, self.slots)

    def text_rows(self, integration: Integration, cached: Tensor | None, valid: Tensor | None, at: Tensor) -> TextRows:
        """The query rows with all keys; see `attention`.

        Args:
            integration: The model's family.
            cached: Keys in the layer's cache.
            valid: Bool (rows, past + slots), False on padding; None without padding.
            at: (rows, tokens), where the visual tokens stand now.
        """
        if self.rows is None:
            raise TypeError("only rows of text were captured whole.")
        queries, keys = self._queries_keys(integration, cached)
        past = keys.shape[2] - self.length
        if self.slots is not None:
            at = self.slots.gather(1, at.to(self.slots.device))
        sees = self.rows + past
        cos, sin = (gather_rows(x, at.to(x.device)) for x in self.turned)
        return TextRows(
            queries,
            keys,
            integration.decoder_scale(integration.decoder_layers[self.layer]),
            (sees if self.row_valid is None else sees.masked_fill(~self.row_valid, -1)).to(keys.device),
            None if valid is None else valid.to(keys.device),
            (at + past).to(keys.device),
            self.rotation,
            (cos, sin),
        )

    def _queries_keys(self, integration: Integration, cached: Tensor | None) -> tuple[Tensor, Tensor]:
        layer = integration.decoder_layers[self.layer]
        queries = integration.decoder_queries(layer, self.queries, *self.rotation)
        keys = [] if cached is None else [cached.detach().to(queries.device)]
        if self.everything is not None:
            keys.append(integration.decoder_keys(layer, self.everything, *self.turned))
        return queries, keys[0] if len(keys) == 1 else torch.cat(keys, 2)


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

    def __init__(self, integration: Integration, decided: Collection[int] = ()) -> None:
        self.integration = integration
        self.decided = decided  # layers whose attention function may not be called
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
        implementation = self.integration.language_model.config._attn_implementation if signal != "text_rows" else None
        answering = any(isinstance(x, Asked) and x.layer == layer for x in self.captured.values())
        if implementation == NAME and not answering and layer not in self.decided:
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
        return _on_tokens(captured.attention(self.integration, cached, valid), visual)

    def ahead(
        self,
        signal: str,
        layer: int,
        hidden: Tensor,
        rotation: Rotation,
        picture: Tensor,
        slots: Slots,
        earlier: Tensor | None,
        valid: Tensor | None,
        visual: Visual,
    ) -> Tensor:
        """Attention that query rows would give each visual slot in a layer that has not run, (rows, tokens).

        Args:
            signal: "last_query_ahead" or "text_queries_ahead".
            layer: The layer.
            hidden: (rows, slots now, width), its input.
            rotation: Of all slots that are left.
            picture: (rows, slots now), number of the slot's picture, -1 on text and padding.
            slots: The slots that are left.
            earlier: Keys of earlier calls in the layer's cache; None if there are none.
            valid: Bool (rows, earlier + slots now), False on padding; None without padding.
            visual: The visual slots.
        """
        normed = self._normed(layer, hidden)
        rows = signal.removesuffix("_ahead")
        captured = Captured.of(rows, layer, normed, rotation, picture, slots, without_cache=True)
        return _on_tokens(captured.attention(self.integration, earlier, valid), visual)

    def last_row(
        self,
        layer: int,
        hidden: Tensor,
        rotation: Rotation,
        picture: Tensor,
        slots: Slots,
        earlier: Tensor | None,
        valid: Tensor | None,
        visual: Visual,
    ) -> TextRows:
        """The last prompt token's query in a layer that has not run, and the keys that there would be; see `ahead`."""
        normed = self._normed(layer, hidden)
        rows, there = query_rows("last_query", picture, slots.valid)
        cos, sin = (gather_rows(x, rows) for x in rotation)
        queries = gather_rows(normed, rows.to(normed.device))
        captured = Captured(layer, rows, there, queries, (cos, sin), None, hidden.shape[1], rotation, normed)
        with torch.no_grad():
            return captured.text_rows(self.integration, earlier, valid, visual.at)

    def _normed(self, layer: int, hidden: Tensor) -> Tensor:
        normed = self.integration.decoder_normed(self.integration.decoder_layers[layer], hidden.detach())
        return normed.to(hidden.device)  # a layer that is reached by a trial run may be elsewhere

    def text_rows(self, cached: Tensor | None, valid: Tensor | None, visual: Visual) -> TextRows:
        """Queries of the text of the captured layer, and its keys."""
        captured = self.captured["text_rows"]
        if not isinstance(captured, Captured):
            raise TypeError("rows of text were not captured whole.")
        return captured.text_rows(self.integration, cached, valid, visual.at)

    def queries_keys(self, cached: Tensor | None, valid: Tensor | None, visual: Visual) -> QueriesKeys:
        """All that the captured layer's attention worked on."""
        captured = self.captured["queries_keys"]
        if not isinstance(captured, Whole):
            raise TypeError("queries and keys were not captured whole.")
        return captured.queries_keys(self.integration, cached, valid, visual.at)


def _on_tokens(scores: Tensor, visual: Visual) -> Tensor:
    """Scores (rows, slots now) of the visual slots, (rows, tokens); 0 on padding."""
    scores = gather_rows(scores, visual.at.to(scores.device))
    return scores if visual.valid is None else scores.masked_fill(~visual.valid.to(scores.device), 0)


def on_all_rows(rotation: Rotation, rows: int) -> Rotation:
    """Cosines and sines of every row, also where all rows share one."""
    cos, sin = rotation
    return (cos, sin) if len(cos) == rows else (cos.expand(rows, -1, -1), sin.expand(rows, -1, -1))


def query_rows(signal: str, picture: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Slots whose attention a signal is about, (rows, n), and which of them count, None for all.

    Args:
        signal: "last_query"; anything else is about all text after the first picture.
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
