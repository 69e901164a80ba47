"""One call of the language model: removes slots at its door and between its layers, and keeps everything in step.

Slots are the places of the sequence. The door is the call of the language model, where the slots of dropped visual
tokens leave first. Every later removal gives the layers behind it a shorter sequence, and with it a mask, position
embeddings and cache rows of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vtprune.compat import Cache, DynamicCache, build_mask
from vtprune.engine.cache import PhysicalCache, Rows, VisualCacheLayer, adopt, is_visual
from vtprune.engine.chain import Chain, ChainStage
from vtprune.engine.deepstack import DeepStackRows
from vtprune.engine.door import decide, leaving
from vtprune.engine.encoder import EncoderRun, Event
from vtprune.engine.layout import VisualLayout
from vtprune.engine.positions import dense_positions
from vtprune.engine.selection import Selected, living
from vtprune.engine.signals import Captured, query_rows
from vtprune.integrations.base import Integration, Kind
from vtprune.kernels import compact_index, gather_rows
from vtprune.methods.base import Keep, Positions, VisualTokens


class DecoderStep:
    """State of one call of the language model.

    Attributes:
        index: (rows, slots now), original slot of every slot that is left.
        valid: Bool (rows, slots now), False on padding; None where nothing is padding.
        positions: (axes, rows, slots now), position ids.
        picture, token: (rows, slots now), from the layout; None in a call without pictures.
        newline, line: (rows, slots now), from the layout; None if there are no newline tokens.
        lengths: Per decoder layer, valid slots per row (or the one number for all rows) and cached slots before them.
    """

    def __init__(self, integration: Integration, chain: Chain, layout: VisualLayout | None) -> None:
        self.integration = integration
        self.chain = chain
        self.layout = layout
        self.selected: list[Selected] = []
        self.deepstack: DeepStackRows | None = None
        self.events: list[Event] = []
        self.memory: dict[str, Any] = {}
        self.captured: dict[str, Captured] = {}
        self.moved = False  # whether slots have left at all
        self.compacted = False  # whether slots have left since the language model made its mask and embeddings
        self.lengths: dict[int, tuple[Tensor | int, int]] = {}
        self.masks: dict[int, Any] = {}
        self.embeddings: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @staticmethod
    def needed(runs: Mapping[Kind, EncoderRun], cache: Cache | None) -> bool:
        """Whether a call of the language model concerns the engine: new pictures, or a cache that lost some."""
        return bool(runs) or is_visual(cache)

    # The door.

    def enter(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Change the language model's arguments: fewer slots, their positions and mask, the physical cache."""
        inputs = arguments["inputs_embeds"] if arguments.get("inputs_embeds") is not None else arguments["input_ids"]
        self.batch, self.original_length = inputs.shape[:2]
        self.device = inputs.device
        self.cache: Cache | None = self._cache(arguments)
        self.past = past = self.cache.get_seq_length() if self.cache is not None else 0
        self.rows = self._rows()
        self.past_shift = [rows.shift for rows in self.rows]
        self.past_length = [self._physical(i) for i in range(len(self.rows))]
        mask = arguments.get("attention_mask")
        self.valid = self._new_validity(mask)
        if mask is not None and past and not is_visual(self.cache):
            earlier = mask[:, : -self.original_length].bool().to(self.device)
            self.rows[0].valid = None if bool(earlier.all()) else earlier
        self.row_lengths = self.original_lengths = _lengths(self.valid, self.original_length)
        positions = arguments.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + self.original_length, device=self.device)[None]
        plain = positions.ndim == 2
        self.positions = positions.to(self.device).reshape(-1, *positions.shape[-2:]).expand(-1, self.batch, -1)
        if self.rows[0].shift is not None:
            self.positions = self.positions - self.rows[0].shift[:, None].to(self.device)
        self.index = torch.arange(self.original_length, device=self.device).expand(self.batch, -1)
        self.picture: Tensor | None = None
        self.token: Tensor | None = None
        self.newline: Tensor | None = None
        self.line: Tensor | None = None
        drop: Tensor | None = None
        if self.layout is not None:
            self.picture, self.token = self.layout.picture.to(self.device), self.layout.token.to(self.device)
            if self.layout.newlines is not None:
                self.newline, self.line = self.layout.newlines.to(self.device), self.layout.lines.to(self.device)
            visual: Tensor | None = arguments.get("visual_pos_masks")
            self.deepstack = None if visual is None else DeepStackRows(visual)
            self.selected, self.events = decide(self.chain, self.layout, arguments)
            drop = leaving(self.layout, self.selected)
        for rows in dict.fromkeys(self.rows):
            rows.extend(self.batch, self.past_length[rows.leader], self.original_length, self.valid, self.device)
        if drop is not None:
            index, _ = self._compact(~drop, 0, self.chain.door_positions)
            for name in ("input_ids", "inputs_embeds"):
                if arguments.get(name) is not None:
                    arguments[name] = gather_rows(arguments[name], index)
            self._drop_deepstack(arguments)
            self.compacted = False
        if drop is not None or is_visual(self.cache):
            arguments["position_ids"] = self.positions[0] if plain else self.positions
            mask = self.rows[0].valid
            if mask is None and self.cache is None:
                # Without a cache and a mask, transformers takes gaps in position ids for packed sequences.
                mask = torch.ones(self.batch, self.index.shape[1], dtype=torch.bool, device=self.device)
            arguments["attention_mask"] = mask
            if self.cache is not None and is_visual(self.cache):
                arguments["past_key_values"] = PhysicalCache(self.cache)
        return arguments

    def _drop_deepstack(self, arguments: dict[str, Any]) -> None:
        if self.deepstack is None or self.picture is None:
            return
        mask, levels = self.picture >= 0, DeepStackRows.levels(arguments)
        arguments["deepstack_visual_embeds"] = [self.deepstack.select(mask, level) for level in levels]
        arguments["visual_pos_masks"] = mask
        self.deepstack = DeepStackRows(mask)

    def _cache(self, arguments: dict[str, Any]) -> Cache | None:
        cache = arguments.get("past_key_values")
        if cache is not None:
            return cache
        language_model = self.integration.language_model
        use_cache = arguments.get("use_cache")
        if use_cache is None:
            use_cache = getattr(language_model.config, "use_cache", False)
        if not use_cache or (getattr(language_model, "gradient_checkpointing", False) and language_model.training):
            return None
        cache = arguments["past_key_values"] = DynamicCache(config=language_model.config)
        return cache

    def _cached(self) -> list[Any]:
        return self.cache.layers if self.cache is not None else []

    def _rows(self) -> list[Rows]:
        layers = len(self.integration.decoder_layers)
        if is_visual(self.cache):
            return [layer.rows for layer in self._cached()]
        return [Rows(0)] * layers

    def _physical(self, layer: int) -> int:
        layers = self._cached()
        if layer >= len(layers):
            return 0
        cached = layers[layer]
        return cached.physical_length if isinstance(cached, VisualCacheLayer) else cached.get_seq_length()

    def _new_validity(self, mask: Tensor | None) -> Tensor | None:
        """Which of the new slots are no padding; None for all."""
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise ValueError(
                f"{self.chain.label} needs a 2-D attention mask (rows, slots), got "
                f"{f'{mask.ndim}-D' if isinstance(mask, Tensor) else type(mask).__name__}; static and other compilable "
                "caches make 4-D masks: use a DynamicCache, and no mask of your own."
            )
        valid = mask[:, -self.original_length :].bool().to(self.device)
        if self.original_length == 1 and self.rows[0].valid is not None:
            return valid  # decoding: not worth a look, the earlier padding needs a mask anyway
        return None if bool(valid.all()) else valid

    # Removing slots.

    def _compact(self, keep: Tensor, layer: int, positions: Positions) -> tuple[Tensor, Tensor | None]:
        """Remove slots for the layers from `layer` on; returns where the remaining ones stood and which are valid."""
        before = self.index.shape[1]
        if self.valid is not None:
            keep = keep & self.valid
        dropped = ~keep if self.valid is None else ~keep & self.valid
        index, valid = compact_index(keep)
        self._own_rows(layer)
        length = index.shape[1]
        shift: Tensor | None = None
        if positions == "compact":
            self.positions, shift = dense_positions(self.positions, dropped, self.picture)
        self.positions = torch.stack([gather_rows(axis, index) for axis in self.positions])
        if valid is not None:
            self.positions = self.positions.masked_fill(~valid, 0)
        # Behind the last slot that leaves, in the slots of this call.
        behind = torch.where(dropped, self.index + 1, 0).amax()
        for rows in dict.fromkeys(self.rows[layer:]):
            rows.replace_tail(self.batch, self.past_length[rows.leader], length, valid, self.device)
            rows.removed += before - length
            rows.removal_end = torch.maximum(behind + self.past, torch.as_tensor(rows.removal_end).to(behind))
            if shift is not None:
                rows.subtract(shift)
        for name in ("index", "picture", "token", "newline", "line"):
            if (on_slots := getattr(self, name)) is not None:
                setattr(self, name, gather_rows(on_slots, index))
        if self.picture is not None and valid is not None:
            self.picture = self.picture.masked_fill(~valid, -1)
        if self.deepstack is not None:
            self.deepstack.compact(index)
        for captured in self.captured.values():
            captured.slots = gather_rows(captured.slots, index)
        self.valid = valid
        self.row_lengths = _lengths(valid, length)
        self.compacted = self.moved = True
        self.masks.clear()
        self.embeddings.clear()
        return index, valid

    def _own_rows(self, layer: int) -> None:
        """Make the layers from `layer` on keep rows of their own, in a cache that keeps two lengths."""
        if self.cache is not None and not is_visual(self.cache):
            adopt(self.cache, len(self.rows), self.chain.label)
        twins: dict[Rows, Rows] = {}
        for i in range(layer, len(self.rows)):
            rows = self.rows[i]
            if rows.leader < layer:
                if rows not in twins:
                    twins[rows] = rows.split(i)
                self.rows[i] = twins[rows]
        if self.cache is not None:
            for cached, rows in zip(self._cached(), self.rows, strict=True):
                cached.rows = rows

    # Between the layers.

    def before_layer(self, layer: int, stages: list[ChainStage], hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Run the stages at a layer's input; returns its hidden states and puts its mask and positions in `kwargs`."""
        for stage in stages:
            hidden = self._run(stage, layer, hidden)
        self.captured = {}
        self.lengths[layer] = (self.row_lengths, self.past_length[layer])
        own = self.rows[layer] is not self.rows[0]
        if self.compacted or own:
            kwargs["attention_mask"] = self._mask(layer, hidden)
        if self.compacted or self.past_shift[layer] is not self.past_shift[0]:
            kwargs["position_embeddings"] = self._embeddings(layer, hidden)
        # The rotary embedding carries the positions; gaps in the ids would look like packed sequences.
        if "position_ids" in kwargs:
            kwargs["position_ids"] = None
        return hidden

    def _mask(self, layer: int, hidden: Tensor) -> Any:
        rows = self.rows[layer]
        if id(rows) not in self.masks:
            config = self.integration.language_model.config
            self.masks[id(rows)] = build_mask(config, hidden, rows.valid, self.past_length[layer])
        mask = self.masks[id(rows)]
        return mask.to(hidden.device) if isinstance(mask, Tensor) else mask

    def _embeddings(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        own, first = self.past_shift[layer], self.past_shift[0]
        key = (id(own), self.index.shape[1])
        if key not in self.embeddings:
            positions = self.positions
            if own is not None and own is not first:
                positions = positions - own[:, None].to(self.device)
            if first is not None and own is not first:
                positions = positions + first[:, None].to(self.device)
            if self.integration.position_axes == 1:
                positions = positions[0]
            elif len(positions) > self.integration.position_axes:
                positions = positions[1:]  # without the plain count
            self.embeddings[key] = self.integration.language_model.rotary_emb(
                hidden, position_ids=positions.to(hidden.device)
            )
        cos, sin = self.embeddings[key]
        return cos.to(hidden.device), sin.to(hidden.device)

    def _run(self, stage: ChainStage, layer: int, hidden: Tensor) -> Tensor:
        if self.picture is None or self.layout is None:
            return hidden
        visual = self.picture >= 0
        if self.newline is not None:
            visual = visual & ~self.newline
        slots, valid = compact_index(visual)
        if slots.shape[1] == 0:
            return hidden
        if valid is None:
            valid = torch.ones_like(slots, dtype=torch.bool)
        first = torch.tensor(self.layout.first, device=self.device)
        number = torch.where(valid, gather_rows(self.picture, slots) - first[:, None], -1)
        arrived = torch.zeros(self.batch, self.layout.most + 1, dtype=torch.long, device=self.device)
        arrived = arrived.scatter_add(1, number + 1, torch.ones_like(number))[:, 1:]
        attention = self._attention(next(iter(stage.signals)), slots, valid) if stage.signals else None
        memory = self.memory.setdefault(stage.method, {})
        with torch.no_grad():
            decision = stage.decide(VisualTokens(layer, valid, number, arrived, attention, memory))
        before = (self.picture >= 0).sum()
        if decision is None:
            return hidden
        if not isinstance(decision, Keep):
            raise TypeError(f"{stage.method}: a stage at a decoder layer must return Keep, got {decision!r}.")
        stays = decision.mask.to(self.device) | ~valid
        # Padding points at slot 0: it must not undo what is decided about that slot.
        drop = torch.zeros_like(visual).scatter_reduce(1, slots, ~stays, "amax")
        if self.newline is not None and self.line is not None:
            # A newline stays as long as a token of its line does.
            alive = living(self.line.clamp_min(0), visual & ~drop)
            drop = drop | (self.newline & (self.picture >= 0) & ~alive)
        self.events.append(Event(stage, layer, before, before - drop.sum()))
        if not bool(drop.any()):
            return hidden
        index, _ = self._compact(~drop, layer, stage.positions)
        return gather_rows(hidden, index)

    # Signals.

    def capture(self, layer: int, signal: str, hidden: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Remember which query rows of this layer's attention the next layer's stage will ask for."""
        if self.picture is None:
            return
        hidden = hidden.detach()
        cos, sin = cos.expand(self.batch, -1, -1), sin.expand(self.batch, -1, -1)
        rows, row_valid = query_rows(signal, self.picture, self.valid)
        self.captured[signal] = Captured(
            layer,
            rows,
            row_valid,
            gather_rows(hidden, rows),
            (gather_rows(cos, rows), gather_rows(sin, rows)),
            torch.arange(hidden.shape[1], device=self.device).expand(self.batch, -1),
            hidden.shape[1],
            (hidden, (cos, sin)) if self.cache is None else None,
        )

    def _attention(self, signal: str, slots: Tensor, slot_valid: Tensor) -> Tensor:
        """Attention that the captured query rows gave each visual slot, (rows, tokens); 0 on padding."""
        captured = self.captured[signal]
        cached = self._cached()[captured.layer].keys if self.cache is not None else None
        scores = captured.attention(self.integration, cached, self.rows[captured.layer].valid)
        return gather_rows(scores, slots).masked_fill(~slot_valid.to(scores.device), 0)

    # Afterwards.

    def leave(self, output: Any) -> Any:
        """Give the caller its own cache back."""
        cache = getattr(output, "past_key_values", None)
        if isinstance(cache, PhysicalCache):
            output["past_key_values"] = cache.logical
        return output

    def keep_logits(self, wanted: Tensor) -> None:
        """Rewrite positions, or a mask, of the original slots in place to those that are left.

        Raises:
            ValueError: A position was removed, or differs between the rows.
        """
        if not self.moved:
            return
        new = torch.full((self.batch, self.original_length), -1, device=self.device)
        numbers = torch.arange(self.index.shape[1], device=self.device).expand(self.batch, -1)
        valid = self.valid if self.valid is not None else torch.ones_like(numbers, dtype=torch.bool)
        # Padding writes where the last slot, which is never padding, writes the same.
        index, numbers = (torch.where(valid, x, x[:, -1:]) for x in (self.index, numbers))
        new = new.scatter(1, index, numbers)
        if wanted.dtype == torch.bool:
            left = gather_rows(wanted.to(self.device), self.index) & valid
            wanted.set_(left.to(wanted.device))  # type: ignore[call-overload]
            return
        positions = (wanted.to(self.device) % self.original_length).expand(self.batch, -1)
        moved = new.gather(1, positions)
        if bool((moved < 0).any()):
            gone = sorted(set(positions[moved < 0].tolist()))
            raise ValueError(f"logits_to_keep asks for positions {gone}, which {self.chain.label} removed.")
        if wanted.ndim == 1:
            if bool((moved != moved[:1]).any()):
                raise ValueError(
                    "logits_to_keep asks for the same positions in all rows, but rows kept different numbers of "
                    "tokens; pass one row of positions per sample, or an int."
                )
            moved = moved[0]
        wanted.copy_(moved)

    def surviving_labels(self, labels: Tensor) -> Tensor:
        """Labels (rows, original slots) on the slots that are left; padding and what follows it are ignored."""
        index = self.index.to(labels.device)
        kept = gather_rows(labels, index)
        if self.valid is not None:
            valid = self.valid.to(labels.device)
            follows = torch.cat((torch.ones_like(valid[:, :1]), valid[:, :-1]), dim=1)
            kept = kept.masked_fill(~(valid & follows), -100)
        return kept


def _lengths(valid: Tensor | None, slots: int) -> Tensor | int:
    """Valid slots per row, or the one number for all rows."""
    return slots if valid is None else valid.sum(1)
