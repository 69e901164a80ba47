"""From the state of a finished prefill to a report; the tensors are only read when someone asks."""

from __future__ import annotations

import bisect
import dataclasses

from vtprune.engine.cache import held_bytes, slot_bytes
from vtprune.engine.chain import Chain
from vtprune.engine.decoder import DecoderStep
from vtprune.engine.encoder import EncoderRun
from vtprune.engine.events import Event, Marked
from vtprune.engine.flops import decoder_flops, encoder_flops, projector_flops
from vtprune.engine.layout import VisualLayout
from vtprune.engine.savings import Prompt, Saving, Savings
from vtprune.engine.selection import Selected
from vtprune.engine.steps import Steps
from vtprune.engine.work import Work
from vtprune.integrations.base import Integration
from vtprune.methods.base import Place
from vtprune.report import MapReport, PictureReport, PlaceReport, Report


class Prefill:
    """What a report needs of a finished prefill, without its hidden states and its cache."""

    def __init__(self, integration: Integration, chain: Chain, step: DecoderStep) -> None:
        if step.layout is None:
            raise RuntimeError("only a prefill with pictures has a report.")
        self.integration = integration
        self.chain = chain
        light = {p.run: p.run.without_features() for p in step.layout.pictures}
        pictures = [dataclasses.replace(p, run=light[p.run]) for p in step.layout.pictures]
        self.layout: VisualLayout = dataclasses.replace(step.layout, pictures=pictures)
        self.runs: list[EncoderRun] = list(light.values())
        self.selected: list[Selected] = [dataclasses.replace(one, levels=None) for one in step.selected]
        events = [*(event for run in self.runs for event in run.events), *step.events]
        self.events = sorted(events, key=lambda event: event.stage.stage.place is Place.CACHE)
        self.slots = step.slots
        self.batch = step.batch
        self.lengths = step.lengths
        self.tried = step.tried
        self.neurons = step.inside.neurons
        self.work = step.inside.work
        self.states = None if step.sharing is None else step.sharing.counts
        self.original_lengths = step.original_lengths
        self.kv_bytes = None if step.cache is None else held_bytes(step.cache)
        self.slot_bytes = [slot_bytes(layer) for layer in step.cached] or [0] * len(step.lengths)
        self.past, self.width = step.past, step.original_length
        self._report: Report | None = None

    def report(self) -> Report:
        """The report; made once."""
        if self._report is None:
            before, after = self._flops()
            kv_after, kv_before = self.kv_bytes or (None, None)
            events = self._acted()
            savings = self._savings(events)
            places = tuple(_place(*x, kv_before is not None) for x in zip(events, savings, strict=True))
            pictures = self._pictures(Steps(self.runs, self.layout, self.selected, events, places))
            earlier = Saving(before - after, (kv_before or 0) - (kv_after or 0)).less(savings)
            self._report = Report(
                methods=self.chain.names,
                visual_tokens_before=sum(p.tokens for p in pictures),
                visual_tokens_after=sum(len(p.kept) for p in pictures),
                prefill_flops_before=before,
                prefill_flops_after=after,
                kv_bytes_before=kv_before,
                kv_bytes_after=kv_after,
                places=places,
                pictures=pictures,
                notes=self._notes(earlier),
            )
        return self._report

    def _pictures(self, steps: Steps) -> tuple[PictureReport, ...]:
        found, owners = steps.of_pictures(), steps.owners_at(len(self.lengths))
        picture, token = self.slots.on(self.layout.picture).cpu(), self.slots.on(self.layout.token).cpu()
        became = {number: (one, i) for one in self.selected for i, number in enumerate(one.numbers)}
        rows = [bisect.bisect_right(self.layout.first, number) - 1 for number in range(len(self.layout.source))]
        reports = []
        for number, encoded in enumerate(self.layout.source):
            layout = self.layout.pictures[encoded].layout
            entered = list(range(layout.slots))
            if encoded in became:
                one, i = became[encoded]
                entered = one.kept[i].nonzero().squeeze(1).tolist()
            reports.append(
                PictureReport(
                    row=rows[number],
                    index=number - self.layout.first[rows[number]],
                    kind=layout.kind,
                    tokens=layout.slots,
                    maps=tuple(MapReport(m.name, m.grid, tuple(m.slots().tolist())) for m in layout.maps),
                    entered=tuple(entered),
                    kept=tuple(token[picture == number].tolist()),
                    owner=owners[number],
                    seconds=layout.seconds,
                    steps=found[number],
                )
            )
        return tuple(reports)

    def _flops(self) -> tuple[int, int]:
        """Prefill FLOPs before and after, of the encoder, the projector and the decoder's layers."""
        integration, before, after = self.integration, 0, 0
        for run in self.runs:
            before += encoder_flops(integration, run.given, {}) + projector_flops(integration) * run.given_tokens
            after += encoder_flops(integration, run.call, run.layer_tokens)
            after += projector_flops(integration) * run.projected_tokens
        for i, layer in enumerate(integration.decoder_layers):
            length, past = self.lengths[i]
            before += decoder_flops(integration, layer, self.original_lengths, self.past)
            if i in self.work:
                after += self.work[i].flops(integration, layer, length, past)
            else:
                after += decoder_flops(integration, layer, length, past, self.states)
        return before, after + sum(tried.flops(integration) for tried in self.tried)

    def _acted(self) -> list[Event]:
        """All that acted, in the order of the places: trial runs, and what stages inside layers spare, among it."""
        events, integration = list(self.events), self.integration
        texts = sum(self.original_lengths) - int(self.layout.visual.sum())
        trials = {stage.method: stage for stage in self.chain.decoder_stages if stage.stage.trial is not None}
        for tried in self.tried:
            stage, all_of = trials[tried.method], [tried.visual]
            spared = -tried.flops(integration)
            events.append(Marked(stage, stage.layers[0], all_of, all_of, tried.slot, spared=spared))
            decided = [i for i, event in enumerate(self.events) if event.stage is stage]
            if decided:
                events[decided[0]] = dataclasses.replace(events[decided[0]], spared=events.pop().spared)
        for i, work in sorted(self.work.items()):
            (counts, past), layer = self.lengths[i], integration.decoder_layers[i]
            attention = dataclasses.replace(work, fed=None)
            costs = [x.flops(integration, layer, counts, past) for x in (Work(), attention, work)]
            stages = self.chain.attention_stages.get(i), self.chain.mlp_stages.get(i)
            tokens = sum(counts) - texts
            for acting, before, after in zip(stages, costs, costs[1:], strict=False):
                if acting is not None and acting.method in work.methods:
                    events.append(Event(acting, i, tokens, tokens, spared=before - after))
        order = {Place.ATTENTION: 1, Place.MLP: 2, Place.CACHE: 3}  # the others are in order
        return sorted(events, key=lambda event: order.get(event.stage.stage.place, 0))

    def _savings(self, events: list[Event]) -> list[Saving]:
        """What each event saves."""
        past = [past for _, past in (self.lengths[i] for i in range(len(self.lengths)))]
        prompt = Prompt(self.original_lengths, self.width, past, self.slot_bytes, self.states)
        return Savings(self.integration, self.runs, self.layout, prompt).of(events, self.selected)

    def _notes(self, earlier: Saving) -> tuple[str, ...]:
        acted = {event.stage.method for event in self.events}.union(*(work.methods for work in self.work.values()))
        idle = [name for name in dict.fromkeys(self.chain.names) if name not in acted]
        later = {stage.method for stage in self.chain.attention_stages.values() if stage.stage.decodes}
        notes = [
            f"{name} may read less of the cache from the second token of an answer on."
            if name in later
            else f"{name} removed nothing."
            for name in idle
        ]
        notes += [
            f"{tried.method} first ran {tried.layers} decoder layers on all {sum(tried.lengths)} tokens of the prompt, "
            "in order to choose; these FLOPs are counted."
            for tried in self.tried
        ]
        notes += [
            f"{method} decodes with {int(mask.any(0).sum())} of {mask.shape[1]} neurons in layer {layer}."
            for layer, (method, mask) in sorted(self.neurons.items())
        ]
        if self.work:
            notes.append(self._saved_inside())
        if self.states is not None:
            merged = sum(self.original_lengths) - sum(self.states)
            visual = int(self.layout.visual.sum())
            notes.append(
                f"the {visual} visual tokens share {visual - merged} hidden states in the language model: its norms, "
                "projections and MLPs run on these, its attention and its cache hold all tokens."
            )
        if any(run.joins_patches and run.merged_any for run in self.runs):
            notes.append(
                "several patches make a token in this family: merged patches save work in the encoder, and only tokens "
                "that have become equal leave the prompt."
            )
        if any(earlier):
            notes.append(
                f"of the savings, {earlier.flops / 1e9:,.3f} GFLOPs and {earlier.kv_bytes / 1024:,.0f} KiB are due to "
                "what left before this turn."
            )
        return tuple(notes)

    def _saved_inside(self) -> str:
        """What layers compute that compute less on the same tokens."""
        layers, before, after = self.integration.decoder_layers, 0, 0
        for i, work in self.work.items():
            before += Work().flops(self.integration, layers[i], *self.lengths[i])
            after += work.flops(self.integration, layers[i], *self.lengths[i])
        names = sorted(set().union(*(work.methods for work in self.work.values())))
        which = f"{len(self.work)} of {len(layers)} decoder layers"
        return f"{' and '.join(names)}: {which} compute {after / before:.0%} of their FLOPs on the same tokens."


def _place(event: Event, saving: Saving, cached: bool) -> PlaceReport:
    before, after = event.counts()
    inside = event.stage.stage.place in (Place.ATTENTION, Place.MLP)  # where no token leaves
    note = event.note() or ("kept everything" if before == after and not inside else "")
    place = Place.DECODER_LAYER if event.stage.stage.skips else event.stage.stage.place
    kv_bytes = saving.kv_bytes if cached else None
    return PlaceReport(event.stage.method, place.value, event.layer, before, after, note, saving.flops, kv_bytes)
