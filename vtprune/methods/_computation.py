"""What stages inside decoder layers are shown, and what they may decide: less is computed, and no token leaves."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from vtprune.methods._inputs import Cells


@dataclasses.dataclass(frozen=True)
class Where:
    """Where the visual slots of a call lie, in their pictures and in the prompt.

    Args:
        cells: Of every visual slot, (rows, m) each; -1 on newlines and padding. Maps are counted over the batch.
        columns: Most columns that a map has.
        text_before: (rows, k), list of the text that stands before a row's last visual slot.
    """

    cells: Cells
    columns: int
    text_before: Tensor


@dataclasses.dataclass(frozen=True)
class LayerSlots:
    """What a stage at the attention, or at the MLP, of a decoder layer sees.

    A slot is a place of this call, an entry a slot whose key and value the attention works on: `past` entries of
    earlier calls come first, slot i is entry past + i. In a call without new pictures, as every step of decoding is,
    all slots are text.

    Lists of slots, and of entries, are ascending, with -1 in front where a row has fewer.

    Args:
        layer: Index of the decoder layer.
        past: Number of entries of earlier calls.
        heads: Query heads of the layer.
        kv_heads: Key-value heads; query head h belongs to key-value head h * kv_heads // heads.
        text: (rows, n), slots of text.
        visual: (rows, m), slots of visual tokens, newlines among them; m = 0 where there are none.
        visual_entries: bool, (rows, kv_heads or 1, entries), which entries are visual; those of earlier calls are known
            to stages with `decodes=True` only. After an eviction heads hold different ones.
        valid: bool, (rows, entries), False on padding; None without padding.
        memory: Belongs to the method, and lives as long as the call; for stages that compare layers.
        held: With `Stage(decodes=True)`, tensors of this layer that live as long as the cache and follow its rows;
            under names that end with "_of_entries" (rows, kv_heads, entries), which follow the entries and get zeros
            for new ones.
        where: Where the visual slots lie; present if "cells" was asked for.
        queries: (rows, heads, slots, head_dim), rotated; present, as all that follows, at the attention if
            "queries_keys_values" was asked for.
        keys: (rows, kv_heads, entries, head_dim), rotated.
        values: (rows, kv_heads, entries, value_dim).
        scale: Factor on the products of queries and keys.
    """

    layer: int
    past: int
    heads: int
    kv_heads: int
    text: Tensor
    visual: Tensor
    visual_entries: Tensor
    valid: Tensor | None
    memory: dict[str, Any]
    held: dict[str, Tensor]
    where: Where | None = None
    queries: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Part:
    """Some queries of an attention, and what they attend to: one dense product.

    Lists have the axes (rows, heads, n) or (rows, heads, blocks, n), where heads may be 1, for all alike; a block of
    slots attends to the block of entries of the same number.

    Args:
        slots: Whose queries; None: all slots.
        entries: What they may attend to; its heads may also be all key-value heads; None: all entries.
        heads: Of which query heads; None: all. Where lists differ by heads, they have these heads only.
        sees: bool, (rows or 1, heads or 1, [blocks,] n, m), which of these entries each of these slots attends to;
            None: those that do not stand behind it. Padding is seen by nobody in any case.
        lost: bool, (rows, 1 or kv_heads, entries): attention goes there too, but what it would bring is lost, so that
            the rest adds up to less than one; None: nothing is lost.
        itself: Every slot attends to its own entry only.
        padded: Whether there may be -1, or padding, in the lists; a step of decoding without needs no mask.
    """

    slots: Tensor | None = None
    entries: Tensor | None = None
    heads: tuple[int, ...] | None = None
    sees: Tensor | None = None
    lost: Tensor | None = None
    itself: bool = False
    padded: bool = True


@dataclasses.dataclass(frozen=True)
class Attend:
    """Decision at the attention of a decoder layer: its products, one by one.

    No slot may be in two parts in the same head. A head brings nothing to a slot that is in none of its parts; a slot
    that is in no part at all is neither asked (query projection) nor given anything (output projection), where the
    stage does not need the queries to decide. Keys and values of all slots are made, and cached, in any case.

    Args:
        parts: What is computed; each is one call of a dense kernel.
    """

    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class Width:
    """Some slots, and how much of an MLP they use.

    Args:
        slots: (rows, n), a list.
        channels: How many of the intermediate channels, the first ones; None: all.
    """

    slots: Tensor
    channels: int | None = None


@dataclasses.dataclass(frozen=True)
class Feed:
    """Decision at the MLP of a decoder layer: who uses how much of it.

    Args:
        parts: No slot may be in two of them; the MLP adds nothing to slots that are in none.
    """

    parts: tuple[Width, ...]


@dataclasses.dataclass(frozen=True)
class Activations:
    """What a stage that chooses neurons sees: an MLP that has run on a prompt with pictures.

    Args:
        layer: Index of the decoder layer.
        values: (rows, slots, channels), what enters the last projection, for all slots that are left, of text too.
        valid: bool, (rows, slots), False on padding; None without.
    """

    layer: int
    values: Tensor
    valid: Tensor | None


@dataclasses.dataclass(frozen=True)
class Neurons:
    """Decision at an MLP: which of its channels decoded tokens use.

    Args:
        mask: bool, (rows, channels). Channels that no row uses are sliced off.
    """

    mask: Tensor
