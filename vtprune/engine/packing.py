"""Cache layers that hold entries in few bits, and answer with what these stand for.

Entries that were rounded lie in blocks, those that came later are held as they are, until another block takes them in.
A block is never changed, so that what was rounded once is not rounded again. Whoever reads `keys` and `values` gets all
entries, in order, in the type of the model; they are made for the call and not kept. Whoever replaces them unpacks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtprune.engine.cache import VisualCacheLayer
from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.decoder import DecoderStep
from vtprune.engine.events import Marked
from vtprune.kernels import Codes, channel_scale, compact_index, dequantise, gather_rows, quantise
from vtprune.kernels.quantise import WIDTHS
from vtprune.methods.base import Store

KEYS, VALUES = 0, 1
Map = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Stored(Marked):
    """A stage that had entries of a layer rounded; all visual slots stay.

    Attributes:
        bits: (rows, slots of the call), of each slot that could be rounded, by the first head; else 0.
    """

    bits: Tensor

    def note(self) -> str:
        """How many entries have how many bits; all heads have equally many of each."""
        counts = {width: int((self.bits == width).sum()) for width in reversed(WIDTHS)}
        rounded = [f"{count} at {width} bits" for width, count in counts.items() if count]
        return f"{', '.join(rounded)} per head" if rounded else ""


@dataclasses.dataclass(frozen=True)
class Level:
    """Entries of a block that have equally many bits; the n-th ones of all heads lie side by side.

    Attributes:
        index: (rows, heads, n), where in the block each stands; the length of the block on padding.
        held: Of keys and of values, codes of (rows, n, heads * dim), or these numbers themselves.
    """

    index: Tensor
    held: tuple[Codes | Tensor, Codes | Tensor]

    def put(self, which: int, scale: Tensor | None, out: Tensor, start: int) -> None:
        """Write its keys or values to their places behind `start` in `out`, (rows, heads, entries, dim), contiguous."""
        held, (rows, heads, entries, dim) = self.held[which], out.shape
        whole = dequantise(held, scale) if isinstance(held, Codes) else held
        first = torch.arange(start, rows * heads * entries, entries, device=out.device).view(rows, 1, heads)
        at = first + self.index.transpose(1, 2)  # (rows, n, heads), as the numbers lie
        out.view(-1, dim).index_copy_(0, at.flatten(), whole.view(-1, dim))

    def tensors(self) -> list[Tensor]:
        """All that takes memory."""
        return [self.index, *(x for held in self.held for x in (held[:3] if isinstance(held, Codes) else (held,)))]

    def map(self, each: Map) -> Level:
        """The same with every tensor changed."""
        keys, values = (
            x._replace(packed=each(x.packed), low=each(x.low), step=each(x.step)) if isinstance(x, Codes) else each(x)
            for x in self.held
        )
        return Level(each(self.index), (keys, values))


@dataclasses.dataclass(frozen=True)
class Block:
    """Entries that were rounded together, and those among them that were left as they are.

    Attributes:
        length: How many.
        levels: By number of bits.
        scale: (rows, 1, heads * dim), by which values were divided before they were rounded.
        padded: Whether rows have different numbers of entries in a level.
    """

    length: int
    levels: tuple[Level, ...]
    scale: Tensor
    padded: bool

    @staticmethod
    def of(keys: Tensor, values: Tensor, bits: Tensor, there: Tensor, who: str) -> Block | None:
        """Round entries; the block ends with the last one that is rounded.

        Args:
            keys: (rows, heads, entries, dim).
            values: Likewise.
            bits: (rows, heads, entries), see `Store`.
            there: Bool (rows, entries), what is no padding.
            who: The method, for errors.

        Returns:
            None if no entry is to be rounded.
        """
        rows, heads = bits.shape[:2]
        marks = [(bits == width) & there[:, None] for width in WIDTHS]
        few = torch.stack(marks).any(0)
        inside = few.any(0).any(0).flip(0).long().cumsum(0).flip(0) > 0
        marks.append(there[:, None] & ~few & inside)
        counts = torch.stack([mark.sum(2) for mark in marks])  # (levels, rows, heads)
        numbers = torch.cat((counts.amax(2).flatten(), counts.amin(2).flatten(), inside.sum()[None]))
        *found, length = numbers.tolist()  # the one time that the host waits
        most, least = (
            torch.tensor(x).view(-1, rows).tolist() for x in (found[: len(found) // 2], found[len(found) // 2 :])
        )
        if most != least:
            raise ValueError(f"{who}: the heads of a layer must give equally many entries of a row as many bits.")
        if not length:
            return None
        scale = channel_scale(_beside(values.detach().masked_fill(~few[..., None], 0)[:, :, :length]))
        levels = []
        for width, mark, own in zip((*WIDTHS, 0), marks, most, strict=True):
            if not max(own):
                continue
            index, valid = compact_index(mark.flatten(0, 1), width=max(own), padded=max(own) != min(own))
            k, v = (
                _beside(gather_rows(x.detach().flatten(0, 1), index).unflatten(0, (rows, heads)))
                for x in (keys, values)
            )
            counted = None if valid is None else valid.view(rows, heads, -1)[:, 0]
            held: tuple[Codes | Tensor, Codes | Tensor] = k, v
            if width:
                held = quantise(k, width, "channel", counted), quantise(v, width, "token", counted, scale)
            at = (index if valid is None else index.masked_fill(~valid, length)).view(rows, heads, -1)
            levels.append(Level(at.to(torch.int16 if length < 2**15 else torch.int32), held))
        return Block(length, tuple(levels), scale, any(max(own) != min(own) for own in most))

    def put(self, which: int, out: Tensor, start: int) -> None:
        """Write its keys or values to `out`, (rows, heads, entries, dim), from `start` on; nothing on padding.

        Where rows have different numbers of entries in a level, the place behind the last one is overwritten, too.
        """
        for level in self.levels:
            level.put(which, self.scale if which == VALUES else None, out, start)

    def tensors(self) -> list[Tensor]:
        """All that takes memory."""
        return [self.scale, *(x for level in self.levels for x in level.tensors())]

    def map(self, each: Map) -> Block:
        """The same with every tensor changed."""
        return Block(self.length, tuple(level.map(each) for level in self.levels), each(self.scale), self.padded)


class PackedLayer(VisualCacheLayer):
    """A `VisualCacheLayer` that holds its first entries in blocks of few bits.

    Attributes:
        blocks: In the order of the entries.
        latest: Keys and values of the entries behind all blocks.
    """

    blocks: tuple[Block, ...] = ()
    latest: tuple[Any, ...] = (None, None)

    @staticmethod
    def of(layer: VisualCacheLayer) -> PackedLayer:
        """A layer that holds the same; nothing is packed yet, if it was not."""
        if isinstance(layer, PackedLayer):
            return layer
        new, held = PackedLayer(layer.index, layer.rows), (layer.keys, layer.values)
        new.lazy_initialization(*held)  # type: ignore[arg-type]
        new.latest, new.record, new.noted, new.core = held, layer.record, layer.noted, layer.core
        return new

    def pack(self, bits: Tensor, there: Tensor, again: bool, who: str) -> bool:
        """Round entries that no block holds yet, or all of them anew; whether there were any. See `Block.of`."""
        start = 0 if again else self._packed
        keys, values = (self._whole(KEYS), self._whole(VALUES)) if again else self.latest
        block = Block.of(keys, values, bits[:, :, start:], there[:, start:], who)
        if block is not None:
            self.blocks = (*(() if again else self.blocks), block)
            self.latest = tuple(x[:, :, block.length :].clone() for x in (keys, values))
        return block is not None

    @property
    def _packed(self) -> int:
        return sum(block.length for block in self.blocks)

    def _whole(self, which: int) -> Any:
        """Keys or values of all entries, (rows, heads, entries, dim)."""
        last = self.latest[which]
        if not self.blocks:
            return last
        entries = self.physical_length
        spare = int(any(block.padded for block in self.blocks))  # for what a block writes behind its end
        whole = last.new_zeros(*last.shape[:2], entries + spare, last.shape[3])
        start = 0
        for block in self.blocks:
            block.put(which, whole, start)
            start += block.length
        whole[:, :, start:entries] = last
        return whole[:, :, :entries]

    @property
    def keys(self) -> Any:
        """Keys of all entries; where they are replaced, nothing is packed any more."""
        return self._whole(KEYS)

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        self.latest, self.blocks = (keys, self.values), ()

    @property
    def values(self) -> Any:
        """Values of all entries, likewise."""
        return self._whole(VALUES)

    @values.setter
    def values(self, values: Tensor | None) -> None:
        self.latest, self.blocks = (self.keys, values), ()

    @property
    def physical_length(self) -> int:
        """Number of slots that this layer holds."""
        last = self.latest[KEYS]
        return self._packed + (0 if last is None or last.ndim < 4 else last.shape[2])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, key-value heads and entries of what this layer holds."""
        return *self.latest[KEYS].shape[:2], self.physical_length

    @property
    def held_bytes(self) -> tuple[int, int]:
        """Bytes of what this layer holds, and what they would be in the type of the model."""
        keys, values = self.latest
        packed = sum(x.nbytes for block in self.blocks for x in block.tensors())
        entry = keys.shape[0] * keys.shape[1] * (keys.shape[3] + values.shape[3]) * keys.element_size()
        return packed + keys.nbytes + values.nbytes, entry * self.physical_length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append entries; returns all of them."""
        if not self.blocks:
            return super().update(key_states, value_states, *args, **kwargs)
        self.latest = tuple(torch.cat(x, 2) for x in zip(self.latest, (key_states, value_states), strict=True))
        return self._whole(KEYS), self._whole(VALUES)

    def _map(self, each: Map) -> None:
        self.latest = tuple(None if x is None else each(x) for x in self.latest)
        self.blocks = tuple(block.map(each) for block in self.blocks)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map(lambda x: x[indices.to(x.device)])
        self._selected(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda x: x.repeat_interleave(repeats, dim=0))
        self._repeated(repeats)

    def crop(self, tokens_to_remove: int) -> None:
        last = 0 if self.latest[KEYS] is None else self.physical_length - self._packed
        if self.blocks and abs(tokens_to_remove) > last:
            raise ValueError(
                f"cannot crop {abs(tokens_to_remove)} tokens: only the last {last} came after the entries that are "
                "held in few bits."
            )
        super().crop(tokens_to_remove)

    def _crop_entries(self, tokens_to_remove: int) -> None:
        tokens = abs(tokens_to_remove)
        self.latest = tuple(x[:, :, : x.shape[2] - tokens] for x in self.latest)

    def offload(self) -> None:
        """Move everything to the CPU."""
        self._map(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move everything back."""
        self._map(lambda x: x.to(self.device, non_blocking=True))


def store(
    step: DecoderStep,
    stage: ChainStage,
    layer: int,
    decision: Store,
    candidate: Tensor,
    there: Tensor,
    visual: Tensor | None,
    slot: Tensor | None,
    end: int,
) -> None:
    """Hold entries of a layer in few bits.

    Args:
        step: The call.
        stage: Who decided.
        layer: The layer.
        decision: What it decided.
        candidate: Bool (rows, kv_heads, entries), what may be rounded.
        there: Bool (rows, entries), what is no padding.
        visual: Bool (rows, slots of the layer), its visual slots; None in a call without pictures.
        slot: (rows, slots of the layer), which slot of the call each was; None while all are there.
        end: Logical length up to which entries may be rounded.
    """
    bits = torch.where(candidate, decision.bits.to(candidate.device), 0)
    step.link_rows()
    layers = step.cached
    held = layers[layer] = PackedLayer.of(layers[layer])
    if held.pack(bits, there, decision.again, stage.method):
        step.rows[layer].removal_end = max(end, step.rows[layer].removal_end)
    if visual is not None:
        here = bits[:, 0, -visual.shape[1] :].masked_fill(~visual, 0)
        step.events.append(Stored(stage, layer, [visual], [visual], slot, here))


def _beside(x: Tensor) -> Tensor:
    """(rows, heads, n, dim) to (rows, n, heads * dim)."""
    return x.transpose(1, 2).flatten(2)
