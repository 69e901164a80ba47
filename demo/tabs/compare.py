"""The tab where several methods meet the same question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from vtprune.demo.drawn.drawing import draw_kept, draw_untouched
from vtprune.demo.drawn.side_by_side import draw_cards
from vtprune.demo.server.messages import told
from vtprune.demo.setting import Setting
from vtprune.demo.tabs.controls import method_list
from vtprune.demo.tabs.events import AT_ONCE, QUIET
from vtprune.demo.tabs.panel import Panel, read_panel
from vtprune.demo.tabs.share import ShareBox
from vtprune.demo.work.comparing import ANSWER, Entry, compare, document, read_several
from vtprune.demo.work.media import Question
from vtprune.demo.work.sharing import Request
from vtprune.demo.work.stops import Stops
from vtprune.evals.pages.scatter import Point, draw_scatter
from vtprune.models import Loaded

_WORK = "compare"
_COSTS = {"ttft": "time to first token, % of unpruned", "flops": "prefill FLOPs, % of unpruned"}


def compare_tab(setting: Setting, panel: Panel, stops: Stops) -> None:
    """Lay out the tab.

    Args:
        setting: What the demo was started with.
        panel: What is asked.
        stops: What stops the work of visitors.
    """
    with gr.Row():
        with gr.Column(scale=3):
            methods = method_list("Methods", ["divprune", "fastv:layer=2", "tome", "random"])
        with gr.Column(scale=2, min_width=240):
            keep = gr.Slider(
                0.01, 1, value=0.25, step=0.01, label="Budget", info="Share of the visual tokens that stay."
            )
        with gr.Column(scale=1, min_width=140):
            go = gr.Button("Compare", variant="primary", elem_id="compare-go")
            stop = gr.Button("Stop", elem_id="compare-stop", interactive=False)
    status = gr.HTML(elem_id="compare-status", elem_classes="status")
    cards = gr.HTML(elem_id="compare-cards")
    with gr.Row():
        scatters = {cost: gr.HTML(elem_id=f"compare-{cost}", elem_classes="plot", min_width=320) for cost in _COSTS}
    share = ShareBox("compare")

    def handle(
        model: str,
        kind: str,
        picture: str | None,
        clip: str | None,
        question: str,
        written: list[str],
        budget: float,
        request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:
        session = str(request.session_hash)
        event = stops.begin(session, _WORK)
        try:
            with told():
                chains = read_several(written, budget)
                asked = read_panel(setting, model, kind, picture, clip, question)
                loaded = setting.models.get(model)
                tokens = min(ANSWER, setting.limits.new_tokens)
                yield {
                    **dict.fromkeys((cards, *scatters.values()), ""),
                    **share.hide(),
                    status: _status("waiting for the model …"),
                    stop: gr.update(interactive=True),
                }
                entries: list[Entry] = []
                overlays: list[Image.Image | None] = []
                for entries in compare(setting.models, model, asked, chains, tokens, event):
                    overlays += [_overlay(loaded, asked, one) for one in entries[len(overlays) :]]
                    done = f"{len(entries) - 1} of {len(chains)} methods …"
                    yield {status: _status(done), cards: draw_cards(entries, overlays)}
                if event.is_set():
                    yield {status: _status("Stopped.")}
                    return
                requests = [
                    Request(model, setting.loading, asked, chain, tokens, setting.limits.frames) for chain in chains
                ]
                plots = {field: _scatter(entries, cost) for cost, field in scatters.items()}
                python = "\n".join([requests[0].imports, "", *(one.call() for one in requests)])
                command = "\n".join(one.command() for one in requests)
                shared = share.show(python, command, document(model, asked, entries))
                yield {**plots, **shared, status: _status(_done(entries))}
        except gr.Error:
            yield {status: ""}
            raise
        finally:
            stops.end(session, _WORK, event)

    def halt(request: gr.Request) -> None:
        stops.stop(str(request.session_hash), _WORK)

    outputs = [status, cards, *scatters.values(), stop, *share.fields]
    going = go.click(handle, [*panel.fields, methods, keep], outputs, concurrency_id="model", **QUIET)
    going.then(lambda: gr.update(interactive=False), None, stop, **AT_ONCE)
    stop.click(halt, None, None, **AT_ONCE)


def _overlay(loaded: Loaded, question: Question, entry: Entry) -> Image.Image | None:
    if entry.error:
        return None
    if entry.report is None:
        return draw_untouched(question)
    return draw_kept(loaded, question, entry.report, None)


def _scatter(entries: Sequence[Entry], cost: str) -> str:
    unpruned, points = entries[0], []
    for one in entries:
        if one.error or one.ttft_ms is None or not unpruned.ttft_ms:
            continue
        share = 1.0
        if one.report is not None:
            flops = one.report.prefill_flops_after / one.report.prefill_flops_before
            share = flops if cost == "flops" else one.ttft_ms / unpruned.ttft_ms
        said = f"answer: {one.answer}" + ("" if one.same else " (the unpruned model has another)")
        points.append(Point(one.label, 100 * share, 100 * one.likeness, one.chain is None, said))
    return draw_scatter(points, _COSTS[cost], "first token alike, %", key=f"compare-{cost}", y_most=100)


def _status(text: str) -> str:
    return f'<p role="status">{text}</p>'


def _done(entries: Sequence[Entry]) -> str:
    same, count = sum(one.same for one in entries[1:]), len(entries) - 1
    return f"{same} of {count} methods give the unpruned model's answer."
