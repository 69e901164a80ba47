"""Attention of chosen query rows in a decoder layer, computed afterwards from its queries and its cached keys."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vtprune.integrations.base import Integration
from vtprune.kernels import attention_scores, compact_index, gather_rows

Rotation = tuple[Tensor, Tensor]  # cos and sin, (rows, slots, head_dim)


@dataclasses.dataclass
class Captured:
    """What a layer's attention saw, as far as the next layer's stage needs it: its query rows, and its keys' source."""

    layer: int
    rows: Tensor  # (rows, n), slots of the queries
    row_valid: Tensor  # bool (rows, n)
    queries: Tensor  # (rows, n, width), normalised hidden states
    rotation: Rotation  # of the queries
    slots: Tensor  # (rows, slots now), where each slot that is still there stood in this layer
    length: int  # slots in this layer
    everything: tuple[Tensor, Rotation] | None  # all normalised hidden states and rotations, only without a cache

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
            numbers = torch.arange(keys.shape[2], device=keys.device)
            mask = numbers <= self.rows.to(keys.device)[:, :, None] + past  # (rows, queries, keys)
            if valid is not None:
                mask = mask & valid.to(keys.device)[:, None, :]
            scores = attention_scores(
                queries,
                keys,
                scale=integration.decoder_scale(layer),
                mask=mask[:, None],
                row_mask=self.row_valid.to(keys.device),
            )
        return gather_rows(scores, self.slots.to(scores.device) + past)


def query_rows(signal: str, picture: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Slots whose attention a signal is about, (rows, n), and which of them count.

    Args:
        signal: "last_query" or "text_queries".
        picture: (rows, slots), number of the slot's picture, -1 on text and padding.
        valid: Bool (rows, slots), False on padding; None without padding.
    """
    valid = torch.ones_like(picture, dtype=torch.bool) if valid is None else valid
    length = picture.shape[1]
    if signal == "last_query":
        last = length - 1 - valid.flip(1).long().argmax(1)
        wanted = torch.arange(length, device=picture.device) == last[:, None]
    else:
        wanted = valid & (picture < 0) & ((picture >= 0).long().cumsum(1) > 0)
    rows, row_valid = compact_index(wanted)
    return rows, torch.ones_like(rows, dtype=torch.bool) if row_valid is None else row_valid
