"""A key-value cache with two lengths: the logical one that `generate` counts, the physical one that a layer holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.compat import Cache, DynamicCache, DynamicLayer


class Rows:
    """What all layers with the same history know about the slots that they hold.

    Args:
        leader: The first of these layers; it alone reorders rows, on behalf of the others.

    Attributes:
        removed: Logical minus physical length.
        valid: Bool (rows, physical length), False on padding; None where nothing is padding.
        shift: (rows,), how much smaller positions are than logical ones, where they were made dense; None for zero.
        removal_end: Logical length up to which slots may have been removed, the end of the last picture; the cache
            cannot be cropped below it.
    """

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.removed = 0
        self.valid: Tensor | None = None
        self.shift: Tensor | None = None
        self.removal_end = 0

    def split(self, leader: int) -> Rows:
        """An independent copy for the layers from `leader` on."""
        twin = copy.copy(self)
        twin.leader = leader
        return twin

    def extend(self, rows: int, past: int, length: int, valid: Tensor | None, device: torch.device) -> None:
        """Append `length` slots to `past` ones; `valid` is bool (rows, length) or None for all valid."""
        if self.valid is None and valid is None:
            return
        before = self.valid if self.valid is not None else torch.ones(rows, past, dtype=torch.bool, device=device)
        after = valid if valid is not None else torch.ones(rows, length, dtype=torch.bool, device=device)
        self.valid = torch.cat((before.to(device), after.to(device)), dim=1)

    def replace_tail(self, rows: int, past: int, length: int, valid: Tensor | None, device: torch.device) -> None:
        """Put `length` slots in the place of all slots after the first `past`."""
        if self.valid is not None:
            self.valid = self.valid[:, :past]
            if valid is None:
                valid = torch.ones(rows, length, dtype=torch.bool, device=device)
        self.extend(rows, past, length, valid, device)

    def subtract(self, dropped: Tensor) -> None:
        """Later positions are smaller by `dropped`, (rows,)."""
        self.shift = dropped if self.shift is None else self.shift.to(dropped.device) + dropped

    def select(self, index: Tensor) -> None:
        """Take these rows of the batch."""
        if self.valid is not None:
            self.valid = self.valid[index.to(self.valid.device)]
        if self.shift is not None:
            self.shift = self.shift[index.to(self.shift.device)]

    def repeat(self, times: int) -> None:
        """Repeat every row."""
        if self.valid is not None:
            self.valid = self.valid.repeat_interleave(times, dim=0)
        if self.shift is not None:
            self.shift = self.shift.repeat_interleave(times, dim=0)

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` slots."""
        if self.valid is not None:
            self.valid = self.valid[:, : self.valid.shape[1] - tokens]


class Record:
    """What stages that act at later calls too know of a layer's entries; it follows them wherever they go.

    Attributes:
        candidate: Bool (rows, kv_heads, entries), what may leave; for stages at the attention what is visual.
        arrived: (rows,), how many candidates the prompts of a row have brought in; 0 before its first picture.
        memory: Per method its own tensors by name: (rows, kv_heads, entries) where a name ends with "_of_entries",
            which get zeros for new entries; all others have rows first.
        across: What belongs to all layers of a method together, in the record of the first of them; rows first.
        acted: Per method the logical length of the cache when it acted last.
    """

    def __init__(self, candidate: Tensor, arrived: Tensor) -> None:
        self.candidate = candidate
        self.arrived = arrived
        self.memory: dict[str, dict[str, Tensor]] = {}
        self.across: dict[str, dict[str, Tensor]] = {}
        self.acted: dict[str, int] = {}

    def _update(self, each: Callable[[Tensor], Tensor], entries_only: bool = False) -> None:
        self.candidate = each(self.candidate)
        if not entries_only:
            self.arrived = each(self.arrived)
        for memory in self.memory.values():
            for name, x in memory.items():
                if not entries_only or name.endswith("_of_entries"):
                    memory[name] = each(x)
        for across in () if entries_only else self.across.values():
            across.update({name: each(x) for name, x in across.items()})

    def extend(self, new: Tensor, pictures: Tensor, earlier: Tensor) -> None:
        """Append the entries of a call.

        Args:
            new: Bool (rows, slots), its candidates.
            pictures: Bool (rows,), which rows got pictures in it.
            earlier: Bool (rows, entries before), which of these the first pictures of a row make candidates, too.
        """
        first = pictures & (self.arrived == 0)
        self._update(lambda x: nn.functional.pad(x, (0, new.shape[1])), entries_only=True)
        past = self.candidate.shape[2] - new.shape[1]
        active = (first | (self.arrived > 0))[:, None]
        self.candidate[:, :, past:] = (new & active)[:, None]
        since = earlier & first[:, None]
        self.candidate[:, :, :past] |= since[:, None]
        self.arrived = self.arrived + since.sum(1)
        if new.shape[1] > 1:  # a prompt, not a decoded token
            self.arrived = self.arrived + (new & active).sum(1)

    def take(self, index: Tensor, valid: Tensor | None) -> None:
        """Keep these entries, (rows, kv_heads, entries left); the rest is padding where `valid` is False."""
        self._update(lambda x: x.gather(2, index), entries_only=True)
        if valid is not None:
            self._update(lambda x: x.masked_fill(~valid, 0), entries_only=True)

    def select(self, index: Tensor) -> None:
        """Take these rows of the batch."""
        self._update(lambda x: x[index.to(x.device)])

    def repeat(self, times: int) -> None:
        """Repeat every row."""
        self._update(lambda x: x.repeat_interleave(times, dim=0))

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` entries."""
        self._update(lambda x: x[:, :, : x.shape[2] - tokens], entries_only=True)


class VisualCacheLayer(DynamicLayer):
    """A `DynamicLayer` that answers with its logical length, and whose padding follows its rows."""

    def __init__(self, index: int, rows: Rows) -> None:
        super().__init__()
        self.index = index
        self.rows = rows
        self.record: Record | None = None  # of stages that evict
        self.noted: Record | None = None  # of stages at the attention
        self.core: Record | None = None  # of a stage that chose neurons

    @property
    def records(self) -> list[Record]:
        """What must follow the entries."""
        return [x for x in (self.record, self.noted, self.core) if x is not None]

    @property
    def leads(self) -> bool:
        return self.rows.leader == self.index

    @property
    def physical_length(self) -> int:
        """Number of slots that this layer holds."""
        return super().get_seq_length()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, key-value heads and entries of what this layer holds."""
        keys: Any = self.keys
        return tuple(keys.shape[:3])

    @property
    def held_bytes(self) -> tuple[int, int]:
        """Bytes of what this layer holds, and what they would be in the type of the model."""
        keys: Any = self.keys
        values: Any = self.values
        return (held := keys.nbytes + values.nbytes), held

    def get_seq_length(self) -> int:
        """Number of tokens that were fed in, including those that are no longer held."""
        return self.physical_length + self.rows.removed

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._selected(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._selected(indices)

    def _selected(self, index: Tensor) -> None:
        """What else belongs to the entries follows the rows that were taken."""
        if self.leads:
            self.rows.select(index)
        for record in self.records:
            record.select(index)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._repeated(repeats)

    def _repeated(self, times: int) -> None:
        """What else belongs to the entries follows the rows that were repeated."""
        if self.leads:
            self.rows.repeat(times)
        for record in self.records:
            record.repeat(times)

    def crop(self, tokens_to_remove: int) -> None:
        tokens = abs(tokens_to_remove)
        if self.get_seq_length() - tokens < (least := self.rows.removal_end):
            raise ValueError(
                f"cannot crop {tokens} tokens: visual tokens were removed or rounded among them; a pruned cache can be "
                f"cropped down to {least} of its {self.get_seq_length()} tokens."
            )
        self._crop_entries(tokens_to_remove)
        if self.leads:
            self.rows.crop(tokens)
        for record in self.records:
            record.crop(tokens)

    def _crop_entries(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.rows = Rows(self.index)
        self.record = self.noted = self.core = None


class PhysicalCache(Cache):
    """The same cache as the language model must see it: lengths are those that its layers hold."""

    def __init__(self, logical: Cache) -> None:
        self.logical = logical

    @property
    def layers(self) -> list[Any]:  # type: ignore[override]
        return self.logical.layers

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        return self.logical.update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.layers[layer_idx].physical_length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length(layer_idx) + query_length, 0

    def __getattr__(self, name: str) -> Any:
        if name == "logical":  # not set yet, while copying
            raise AttributeError(name)
        return getattr(self.logical, name)


def is_visual(cache: Cache | None) -> bool:
    """Whether the cache already keeps the two lengths apart."""
    return cache is not None and len(cache.layers) > 0 and isinstance(cache.layers[0], VisualCacheLayer)


def cache_of(language_model: Any, arguments: dict[str, Any]) -> Cache | None:
    """The cache of a call of the language model, made and put among its arguments where it would make one itself."""
    cache = arguments.get("past_key_values")
    if cache is not None:
        return cache
    use_cache = arguments.get("use_cache")
    if use_cache is None:
        use_cache = getattr(language_model.config, "use_cache", False)
    if not use_cache or (getattr(language_model, "gradient_checkpointing", False) and language_model.training):
        return None
    cache = arguments["past_key_values"] = DynamicCache(config=language_model.config)
    return cache


def physical_length(cache: Cache | None, layer: int) -> int:
    """Number of slots that a layer of the cache holds."""
    layers: list[Any] = [] if cache is None else cache.layers
    if layer >= len(layers):
        return 0
    held = layers[layer]
    return held.physical_length if isinstance(held, VisualCacheLayer) else held.get_seq_length()


def shape_of(layer: Any) -> tuple[int, int, int]:
    """Rows, key-value heads and entries of a layer that holds some."""
    return layer.shape if isinstance(layer, VisualCacheLayer) else tuple(layer.keys.shape[:3])


def layer_bytes(layer: Any) -> tuple[int, int]:
    """Bytes that a layer of a cache holds, and what its entries would be in the type of the model."""
    if isinstance(layer, VisualCacheLayer):
        return layer.held_bytes if layer.physical_length else (0, 0)
    if not isinstance(getattr(layer, "keys", None), Tensor):
        return 0, 0
    return (held := layer.keys.nbytes + layer.values.nbytes), held


def slot_bytes(layer: Any) -> int:
    """Bytes that one slot of every row takes in a layer, in the type of the model; 0 in an empty one."""
    plain = layer_bytes(layer)[1]
    return plain // shape_of(layer)[2] if plain else 0


def held_bytes(cache: Cache | None) -> tuple[int, int]:
    """Bytes that a cache holds, and what they would be had nothing left it and nothing been rounded."""
    layers: list[Any] = [] if cache is None else cache.layers
    return sum(layer_bytes(x)[0] for x in layers), sum(slot_bytes(x) * x.get_seq_length() for x in layers)


def divide_rows(rows: list[Rows], layer: int) -> None:
    """Give the layers from `layer` on rows of their own."""
    twins: dict[Rows, Rows] = {}
    for i in range(layer, len(rows)):
        if rows[i].leader < layer:
            if rows[i] not in twins:
                twins[rows[i]] = rows[i].split(i)
            rows[i] = twins[rows[i]]


def link_rows(cache: Cache, rows: list[Rows], methods: str) -> None:
    """Make a cache keep the two lengths apart, if it does not yet, and its layers know their rows."""
    if not is_visual(cache):
        adopt(cache, len(rows), methods)
    layers: Any = cache.layers
    for i, (cached, own) in reversed(list(enumerate(zip(layers, rows, strict=True)))):
        cached.rows, own.leader = own, i  # the first of its layers is left standing


def adopt(cache: Cache, layers: int, methods: str) -> None:
    """Make a dynamic cache, empty or not, keep the two lengths apart; what it holds stays.

    Raises:
        ValueError: A cache whose layers cannot hold different numbers of tokens.
    """
    for layer in cache.layers:
        if type(layer) is not DynamicLayer:
            raise ValueError(
                f"{methods} needs cache layers that may hold different numbers of tokens, but "
                f"{type(cache).__name__} has {type(layer).__name__}; use a DynamicCache (in generate: leave "
                "cache_implementation and past_key_values unset)."
            )
    rows = Rows(0)
    adopted = [VisualCacheLayer(i, rows) for i in range(layers)]
    held: Any = cache.layers
    for new, old in zip(adopted, held, strict=False):
        if old.is_initialized:
            new.lazy_initialization(old.keys, old.values)
            new.keys, new.values = old.keys, old.values
    cache.layers = list(adopted)
