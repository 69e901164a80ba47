"""From the state of a finished prefill to a report; the tensors are only read when someone asks."""

from __future__ import annotations

import bisect
import dataclasses

from vtprune.engine.cache import held_bytes
from vtprune.engine.chain import Chain
from vtprune.engine.decoder import DecoderStep
from vtprune.engine.encoder import EncoderRun, Event
from vtprune.engine.flops import attention_flops, linear_flops
from vtprune.engine.layout import VisualLayout
from vtprune.engine.selection import Selected
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
        self.work = step.inside.work
        self.states = None if step.sharing is None else step.sharing.counts
        self.original_lengths = step.original_lengths
        self.kv_bytes = None if step.cache is None else held_bytes(step.cache)
        self._report: Report | None = None

    def report(self) -> Report:
        """The report; made once."""
        if self._report is None:
            pictures = self._pictures()
            before, after = self._flops()
            kv_after, kv_before = self.kv_bytes or (None, None)
            self._report = Report(
                methods=self.chain.names,
                visual_tokens_before=sum(p.tokens for p in pictures),
                visual_tokens_after=sum(len(p.kept) for p in pictures),
                prefill_flops_before=before,
                prefill_flops_after=after,
                kv_bytes_before=kv_before,
                kv_bytes_after=kv_after,
                places=tuple(_place(event) for event in self.events),
                pictures=pictures,
                notes=self._notes(),
            )
        return self._report

    def _pictures(self) -> tuple[PictureReport, ...]:
        picture, token = self.slots.on(self.layout.picture).cpu(), self.slots.on(self.layout.token).cpu()
        became = {number: (one, i) for one in self.selected for i, number in enumerate(one.numbers)}
        rows = [bisect.bisect_right(self.layout.first, number) - 1 for number in range(len(self.layout.source))]
        reports = []
        for number, encoded in enumerate(self.layout.source):
            layout = self.layout.pictures[encoded].layout
            entered, owner = list(range(layout.slots)), None
            if encoded in became:
                one, i = became[encoded]
                entered = one.kept[i].nonzero().squeeze(1).tolist()
                owner = None if one.owner is None else tuple(one.owner[i].tolist())
            reports.append(
                PictureReport(
                    row=rows[number],
                    index=number - self.layout.first[rows[number]],
                    kind=layout.kind,
                    tokens=layout.slots,
                    maps=tuple(MapReport(m.name, m.grid, tuple(m.slots().tolist())) for m in layout.maps),
                    entered=tuple(entered),
                    kept=tuple(token[picture == number].tolist()),
                    owner=owner,
                    seconds=layout.seconds,
                )
            )
        return tuple(reports)

    def _flops(self) -> tuple[int, int]:
        """Prefill FLOPs before and after, of the encoder, the projector and the decoder's layers."""
        before = after = 0
        for run in self.runs:
            encoder = self._encoder_flops(run)
            projector = sum(linear_flops(module) for module in self.integration.projectors)
            before += encoder[0] + projector * sum(unit.slots for unit in run.units)
            after += encoder[1] + projector * run.projected_tokens
        for i, layer in enumerate(self.integration.decoder_layers):
            linear, width = linear_flops(layer), self.integration.decoder_width(layer)
            length, past = self.lengths[i]
            for n in self.original_lengths:
                before += n * linear + attention_flops(n, past + n, width)
            if i in self.work:
                after += self.work[i].flops(self.integration, layer, length, past)
            else:
                for n, states in zip(length, self.states or length, strict=True):
                    after += states * linear + attention_flops(n, past + n, width)
            for tried in self.tried:
                if i < tried.layers:
                    after += sum(n * linear + attention_flops(n, tried.past[i] + n, width) for n in tried.lengths)
        return before, after

    def _encoder_flops(self, run: EncoderRun) -> tuple[int, int]:
        """The encoder runs once per picture, however many rows share it."""
        width = self.integration.encoder_width
        before = after = 0
        now: tuple[int, int] | None = None  # tokens per tile in attention and MLP, once tokens were merged
        for i, layer in enumerate(self.integration.all_encoder_layers):
            mlp = linear_flops(layer.get_submodule("mlp"))
            rest = linear_flops(layer) - mlp
            now = run.layer_tokens.get(i, None if now is None else (now[1], now[1]))
            for n in self.integration.encoder_lengths(i, run.given):
                before += n * (mlp + rest) + attention_flops(n, n, width)
            for n in self.integration.encoder_lengths(i, run.call):
                attended, fed = (n, n) if now is None else now
                after += attended * rest + fed * mlp + attention_flops(attended, attended, width)
        return before, after

    def _notes(self) -> tuple[str, ...]:
        acted = {event.stage.method for event in self.events}.union(*(work.methods for work in self.work.values()))
        idle = [name for name in dict.fromkeys(self.chain.names) if name not in acted]
        notes = [f"{name} removed nothing." for name in idle]
        notes += [
            f"{tried.method} first ran {tried.layers} decoder layers on all {sum(tried.lengths)} tokens of the prompt, "
            "in order to choose; these FLOPs are counted."
            for tried in self.tried
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


def _place(event: Event) -> PlaceReport:
    before, after = event.counts()
    note = event.note() or ("kept everything" if before == after else "")
    place = Place.DECODER_LAYER if event.stage.stage.skips else event.stage.stage.place
    return PlaceReport(event.stage.method, place.value, event.layer, before, after, note)
