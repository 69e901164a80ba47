"""What every stage of a finished prefill saves, in the order in which they act: each counts beyond those before it.

FLOPs follow from the numbers of tokens, bytes of the cache from the slots that a layer is left with; what leaves the
cache itself was measured there. What tokens save that leave inside the encoder is shared among its stages in proportion
to the tokens that they take away. All savings together are the difference of the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from vtprune.engine.encoder import EncoderRun
from vtprune.engine.events import Event
from vtprune.engine.flops import decoder_flops, encoder_flops, projector_flops
from vtprune.engine.layout import VisualLayout
from vtprune.engine.selection import Selected
from vtprune.integrations.base import Integration
from vtprune.methods.base import Place


class Saving(NamedTuple):
    """FLOPs of the prefill and bytes of the cache behind it."""

    flops: int
    kv_bytes: int

    def less(self, parts: Iterable[Saving]) -> Saving:
        """What is left of it without these."""
        parts = list(parts)
        return Saving(self.flops - sum(x.flops for x in parts), self.kv_bytes - sum(x.kv_bytes for x in parts))


class Prompt(NamedTuple):
    """A call of the language model, as far as its cost goes.

    Attributes:
        lengths: Per row, slots that are no padding.
        width: Slots per row, padding included.
        past: Per decoder layer, slots that its cache held before.
        slot_bytes: Per decoder layer, bytes that one slot of every row takes in the cache; 0 without a cache.
        states: Per row, hidden states that the slots share; None: one each.
    """

    lengths: list[int]
    width: int
    past: list[int]
    slot_bytes: list[int]
    states: list[int] | None


class Savings:
    """Adds up, event by event, what a prefill saves.

    Args:
        integration: The model's family.
        runs: What was encoded.
        layout: Where the pictures stand.
        prompt: The call.
    """

    def __init__(
        self, integration: Integration, runs: Sequence[EncoderRun], layout: VisualLayout, prompt: Prompt
    ) -> None:
        self.integration = integration
        self.runs = runs
        self.layout = layout
        self.prompt = prompt
        layers = len(integration.decoder_layers)
        self.lengths = [prompt.lengths] * layers
        self.widths = [prompt.width] * layers
        self.found: dict[int, list[int]] = {}

    def of(self, events: Sequence[Event], selected: Sequence[Selected]) -> list[Saving]:
        """What each event saves.

        Args:
            events: All of them; those at the cache may stand anywhere.
            selected: What became of the pictures before the language model.
        """
        self.found = {id(event): [0, 0] for event in events}
        encoder = [event for run in self.runs for event in run.events]
        inside = {id(event) for event in encoder}
        later = [event for event in events if id(event) not in inside]
        door = [x for x in later if x.stage.stage.place is Place.ENCODER_OUTPUT and not x.stage.stage.skips]
        for run in self.runs:
            self._encoder(run)
        if self.prompt.states is not None:
            self._share(self._linear(None) - self._linear(self.prompt.states), 0, encoder + door)
        elif not any(event.stage.stage.shares for event in encoder + door):
            entered = door[0].before if door else [one.kept for one in selected]
            if not isinstance(entered, int) and len(entered):
                self._cut(self._standing(entered, selected), encoder)
            for event in door:
                if not isinstance(event.after, int):
                    self._cut(self._standing(event.after, selected), [event])
        for event in later:
            self.found[id(event)][0] += event.spared
            if event.layer is None:
                continue
            if event.stage.stage.place is Place.CACHE:
                self.found[id(event)][1] += event.freed
            elif not isinstance(event.before, int) and not isinstance(event.after, int):
                (before,), (after,) = event.before, event.after
                gone = (before & ~after).sum(1).tolist()
                lengths = [n - m for n, m in zip(self.lengths[event.layer], gone, strict=True)]
                until = event.layer + 1 if event.stage.stage.skips else None
                self._cut(lengths, [event], event.layer, until)
        return [Saving(*self.found[id(event)]) for event in events]

    def _encoder(self, run: EncoderRun) -> None:
        """Share out what the blocks of the encoder and the projector save."""
        inputs = [x for x in run.events if x.stage.stage.place is Place.ENCODER_INPUT]
        merges = [x for x in run.events if x.stage.stage.place is Place.ENCODER_LAYER]
        steps, costs = [inputs], [encoder_flops(self.integration, call, {}) for call in (run.given, run.call)]
        for block in sorted({event.layer for event in merges if event.layer is not None}):
            behind = run.layer_tokens[block + 1][0] if block + 1 in run.layer_tokens else run.layer_tokens[block][1]
            tokens = {i: x if i <= block else (behind, behind) for i, x in run.layer_tokens.items() if i <= block + 1}
            tokens.setdefault(block + 1, (behind, behind))
            steps.append([event for event in merges if event.layer == block])
            costs.append(encoder_flops(self.integration, run.call, tokens))
        for (before, after), events in zip(itertools.pairwise(costs), steps, strict=True):
            self._share(before - after, 0, events)
        self._share(projector_flops(self.integration) * (run.given_tokens - run.projected_tokens), 0, run.events)

    def _standing(self, masks: Sequence[Tensor], selected: Sequence[Selected]) -> list[int]:
        """Slots per row while these masks of pictures stand."""
        left: dict[int, int] = {}
        for one, mask in zip(selected, masks, strict=True):
            left.update(zip(one.numbers, mask.sum(1).tolist(), strict=True))
        lengths = list(self.prompt.lengths)
        ends = [*self.layout.first[1:], len(self.layout.source)]
        for row, (start, end) in enumerate(zip(self.layout.first, ends, strict=True)):
            for source in self.layout.source[start:end]:
                slots = self.layout.pictures[source].layout.slots
                lengths[row] += left.get(source, slots) - slots
        return lengths

    def _cut(self, lengths: list[int], events: Sequence[Event], start: int = 0, end: int | None = None) -> None:
        """Leave the layers from `start` to `end` slots of these numbers, and share out what that saves."""
        flops = kv_bytes = 0
        if lengths == self.lengths[start]:
            return
        for i, layer in list(enumerate(self.integration.decoder_layers))[start:end]:
            flops += decoder_flops(self.integration, layer, self.lengths[i], self.prompt.past[i])
            flops -= decoder_flops(self.integration, layer, lengths, self.prompt.past[i])
            kv_bytes += self.prompt.slot_bytes[i] * (self.widths[i] - max(lengths))
            self.lengths[i], self.widths[i] = lengths, max(lengths)
        self._share(flops, kv_bytes, events)

    def _linear(self, states: list[int] | None) -> int:
        """FLOPs of all decoder layers on all slots that share so many hidden states."""
        layers = zip(self.integration.decoder_layers, self.prompt.past, strict=True)
        return sum(decoder_flops(self.integration, x, self.prompt.lengths, past, states) for x, past in layers)

    def _share(self, flops: int, kv_bytes: int, events: Iterable[Event]) -> None:
        """Share savings out among stages, in proportion to the tokens that they take away."""
        shares = [(event, before - after) for event in events for before, after in (event.counts(),)]
        total = sum(n for _, n in shares)
        if not total:  # nobody took a token away: the last one did what was done
            shares, total = [(event, 1) for event, _ in shares[-1:]], 1
        so_far, given = 0, (0, 0)
        for event, n in shares:
            so_far += n
            now = flops * so_far // total, kv_bytes * so_far // total
            found = self.found[id(event)]
            found[0] += now[0] - given[0]
            found[1] += now[1] - given[1]
            given = now
