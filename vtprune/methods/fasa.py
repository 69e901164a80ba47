"""Finds what a decoded token wants by a few frequency chunks of the keys, and reads these entries in full.

A logit is a sum over the planes that rotary embeddings turn, one frequency each. In every head some of these rank
entries nearly as all of them together do; which, a calibration finds once (`vtprune.calibration.fasa_chunks`), or each
prompt for itself. Visual entries are scored by these chunks alone, the best are read, and all text. With `act="evict"`
the end of the prompt scores them once, and the others leave the cache.

With dense kernels, reading saves bytes while decoding: of all visual keys and values only the dominant dimensions of
the keys are read, from a copy in which they lie side by side, and the chosen entries in full. Memory grows by that
copy, and the prefill stays what it was. With 576 entries scoring takes longer than reading all of them. Evicting saves
memory and bytes; its scores cost less than attention would.

Paper: "FASA: Frequency-Aware Sparse Attention", arXiv 2602.03152. No authors' code was found.
Differs from the paper in: only its abstract was available, so this is FASA-like, no reproduction. Ours are: agreement
as the share of the best entries that a chunk finds by itself, visual entries only, dominant chunks per key-value head,
a softmax over the scores of each query head before those of a group are added up, the default of a quarter of the
chunks, chunks found on the fly, and the eviction.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import Budget, LayerBudget, check_keep, of_layer, token_count, token_counts
from vtprune.methods._chunks import agreement, dominant, importance, of_chunks
from vtprune.methods._entries import age, best, counted, latest
from vtprune.methods._reads import forget, held, one_token, reading
from vtprune.methods._select import check_choice, check_whole_numbers, given
from vtprune.methods._strongest import index_of, strongest
from vtprune.methods.base import Attend, CacheEntries, Keep, LayerSlots, Method, ModelInfo, Place, Stage, all_layers
from vtprune.methods.registry import register

Chunks = tuple[tuple[tuple[int, ...], ...], ...]
"""The dominant chunks of every layer and key-value head, ascending."""


@register("fasa")
@dataclasses.dataclass(frozen=True)
class FASA(Method):
    """Reads chosen entries at every decoded token, or evicts once.

    The paper's settings: `keep=256`; of 64 chunks per head about 16.
    """

    kind = "sparse"
    places = (Place.ATTENTION, Place.CACHE)
    paper = "FASA, arXiv 2602.03152"
    cost = "N C / 4 per decoder layer and decoded token, for a quarter of the chunks"
    needs_text = True
    layered = True

    keep: LayerBudget = 0.25  # ratio in (0, 1] of a row's visual entries, or how many, that a head reads or keeps; or a
    # list by layer
    act: Literal["read", "evict"] = "read"  # read them anew at every token, or evict the others after the prefill
    share: Budget = 0.25  # ratio in (0, 1] of the chunks, or how many, that are dominant
    chunks: Chunks | str | None = None  # dominant ones, or a file of them; None: each prompt finds its own
    queries: int = 8  # last tokens of the prompt that find them, >= 1
    sharpen: bool = True  # whether a softmax over the entries comes before heads and queries are added up

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("act", self.act, ("read", "evict"))
        object.__setattr__(self, "share", check_keep(self.share, "share"))
        check_whole_numbers("queries", (self.queries,), 1)
        if isinstance(self.chunks, Path):
            object.__setattr__(self, "chunks", str(self.chunks))
        elif self.chunks is not None and not isinstance(self.chunks, str):
            object.__setattr__(self, "chunks", check_chunks(self.chunks))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One stage in every layer, at the attention or at the cache."""
        layers = all_layers(model, self.keep)
        table = load_chunks(self.chunks) if isinstance(self.chunks, str) else self.chunks
        if table is not None and len(table) != len(layers):
            raise ValueError(f"chunks must have dominant ones for each of {len(layers)} layers, got {len(table)}.")
        method = dataclasses.replace(self, chunks=table)
        if self.act == "evict":
            return [Stage(Place.CACHE, method.evict, layers, frozenset({"closing_queries"}))]
        return [Stage(Place.ATTENTION, method.read, layers, frozenset({"queries_keys_values"}), decodes=True)]

    def read(self, slots: LayerSlots) -> Attend | None:
        """Read what the dominant chunks promise; prompts read everything, and find their chunks."""
        queries = given(slots.queries, self.name, "queries_keys_values")
        keys = given(slots.keys, self.name, "queries_keys_values")
        if not one_token(slots):
            forget(slots)
            if self.chunks is None:
                slots.held["chunks"] = self.leading(self.agreements(slots))
            return None
        now = held(slots, self.name, ("chunks",))
        counts = now.counts(of_layer(self.keep, slots.layer))
        if counts == now.visual:
            return None
        chunks = slots.held["chunks"] if self.chunks is None else self.fixed(slots.layer, keys)
        at = slots.held.get("at")
        if at is None:
            index, valid = index_of(slots.visual_entries.expand(-1, keys.shape[1], -1), max(now.visual))
            at = slots.held["at"] = torch.where(valid, index, -1)
            visual = keys.gather(2, index.unsqueeze(-1).expand(*index.shape, keys.shape[3]))
            slots.held["dominant"] = of_chunks(visual, chunks)
        asking, there = of_chunks(queries, chunks), at >= 0  # of all heads the same ones are padding
        promised = importance(asking, slots.held["dominant"], slots.scale, there[:, :1], sharpen=self.sharpen)
        limits = torch.tensor(counts, device=keys.device)[:, None]
        index, valid = index_of(strongest(promised, limits, there, max(counts)), max(counts))
        chosen = at.gather(2, index)
        return reading(slots, now, torch.where(valid, chosen, -1), counts)

    def agreements(self, slots: LayerSlots) -> Tensor:
        """How far each chunk agrees with the last queries of a prompt, (rows, kv_heads, chunks); see `agreement`."""
        queries = given(slots.queries, self.name, "queries_keys_values")
        keys = given(slots.keys, self.name, "queries_keys_values")
        width = queries.shape[2]
        valid = queries.new_ones(queries.shape[0], width, dtype=torch.bool)
        if slots.valid is not None:
            valid = slots.valid[:, slots.past :]
        last = (valid & (age(valid) < self.queries))[:, None]
        at, there = (x[:, 0] for x in index_of(last, min(self.queries, width)))
        asking = queries.gather(2, at[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[3]))
        entry = torch.arange(keys.shape[2], device=keys.device)
        seen = slots.visual_entries[:, :1] & (entry <= (at + slots.past)[:, :, None]) & there[:, :, None]
        counts = token_counts(of_layer(self.keep, slots.layer), slots.visual_entries[:, 0].sum(1))
        return agreement(asking, keys, seen, counts, keys.shape[2])

    def leading(self, agreements: Tensor) -> Tensor:
        """The chunks that agree most, (rows, kv_heads, c)."""
        return dominant(agreements, token_count(self.share, agreements.shape[-1]))

    def fixed(self, layer: int, keys: Tensor) -> Tensor:
        """The given chunks of a layer, (1, kv_heads, c)."""
        table = self.chunks[layer] if isinstance(self.chunks, tuple) else ()
        chunks = keys.shape[3] // 2
        if len(table) != keys.shape[1] or max(head[-1] for head in table) >= chunks:
            raise ValueError(
                f"chunks must have, in layer {layer}, one list for each of {keys.shape[1]} key-value heads, of numbers "
                f"below {chunks}, got {table}."
            )
        return torch.tensor(table, device=keys.device)[None]

    def evict(self, entries: CacheEntries) -> Keep:
        """Keep in each head what the dominant chunks promise to the text behind the pictures."""
        entry = torch.arange(entries.keys.shape[2], device=entries.keys.device)
        if self.chunks is None:
            last = latest(entries, self.queries)
            seen = entries.candidate[:, :1] & (entry <= last.query_at[:, :, None]) & counted(last)[:, :, None]
            counts = token_counts(of_layer(self.keep, entries.layer), entries.candidate[:, 0].sum(1))
            chunks = self.leading(agreement(last.queries, entries.keys, seen, counts, entries.keys.shape[2]))
        else:
            chunks = self.fixed(entries.layer, entries.keys)
        seen = entries.candidate[:, :1] & (entry <= entries.query_at[:, :, None]) & counted(entries)[:, :, None]
        queries, keys = of_chunks(entries.queries, chunks), of_chunks(entries.keys, chunks)
        promised = importance(queries, keys, entries.scale, seen, sharpen=self.sharpen)
        return Keep(best(promised, entries.counts(self.keep), entries.candidate))


def check_chunks(chunks: Sequence[Sequence[Sequence[int]]]) -> Chunks:
    """Dominant chunks as tuples.

    Raises:
        ValueError: They are no lists of different whole numbers, equally many in all heads of a layer.
    """
    try:
        table = tuple(tuple(tuple(int(x) for x in head) for head in layer) for layer in chunks)
    except (TypeError, ValueError):
        table = ()
    heads = [head for layer in table for head in layer]
    different = all(head and min(head) >= 0 and len(set(head)) == len(head) for head in heads)
    if heads and different and all(len({len(head) for head in layer}) == 1 for layer in table):
        return tuple(tuple(tuple(sorted(head)) for head in layer) for layer in table)
    raise ValueError(
        "chunks must be, for each layer and key-value head, a list of different whole numbers >= 0, equally many in "
        "all heads of a layer, as vtprune.calibration.fasa_chunks finds them, or a file written by save_chunks."
    )


def save_chunks(path: str | Path, chunks: Chunks) -> None:
    """Write dominant chunks to a small JSON file."""
    Path(path).write_text(json.dumps({"method": "fasa", "chunks": chunks}) + "\n")


def load_chunks(path: str | Path) -> Chunks:
    """Read what `save_chunks` wrote.

    Raises:
        ValueError: The file holds something else.
    """
    try:
        return check_chunks(json.loads(Path(path).read_text())["chunks"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"chunks must be a file written by save_chunks, got {str(path)!r}: {error}.") from error
