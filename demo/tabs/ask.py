"""The tab where a question is answered without and with pruning, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from vtprune.demo.drawn.bars import draw_bars, saved, timed
from vtprune.demo.drawn.drawing import draw_kept, tell_kept
from vtprune.demo.drawn.steps import draw_steps
from vtprune.demo.server.messages import told
from vtprune.demo.setting import Setting
from vtprune.demo.tabs.controls import method_picker
from vtprune.demo.tabs.events import AT_ONCE, QUIET
from vtprune.demo.tabs.panel import CLIP, Panel, read_panel
from vtprune.demo.tabs.share import ShareBox
from vtprune.demo.work.asking import Asked, ask, check_tokens
from vtprune.demo.work.chosen import read_chosen
from vtprune.demo.work.measuring import TOKENS
from vtprune.demo.work.sharing import Request
from vtprune.demo.work.stops import Stops

_WORK = "ask"


def ask_tab(setting: Setting, panel: Panel, stops: Stops) -> None:
    """Lay out the tab.

    Args:
        setting: What the demo was started with.
        panel: What is asked.
        stops: What stops the work of visitors.
    """
    longest = setting.limits.new_tokens
    with gr.Row():
        with gr.Column(scale=3):
            picker = method_picker(loaded=setting.models.get(setting.models.names[0]))
        with gr.Column(scale=1, min_width=180):
            go = gr.Button("Ask", variant="primary", elem_id="ask-go")
            stop = gr.Button("Stop", elem_id="ask-stop", interactive=False)
            length = gr.Slider(1, longest, value=min(64, longest), step=1, label="Longest answer, tokens")
    status = gr.HTML(elem_id="ask-status", elem_classes="status")
    with gr.Row():
        unpruned = gr.Textbox(label="Without pruning", lines=2, interactive=False, elem_id="answer-unpruned")
        pruned = gr.Textbox(label="With pruning", lines=2, interactive=False, elem_id="answer-pruned")
    with gr.Row():
        with gr.Column(min_width=340):
            bars = gr.HTML(elem_id="ask-bars")
        with gr.Column(min_width=340, visible=False) as beside:
            overlay = kept_picture("ask-overlay")
    sheet = kept_picture("ask-sheet")
    steps = gr.HTML(elem_id="ask-steps")
    share = ShareBox("ask")

    def handle(
        model: str,
        kind: str,
        picture: str | None,
        clip: str | None,
        question: str,
        method: str,
        max_new_tokens: int,
        request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:
        session = str(request.session_hash)
        event = stops.begin(session, _WORK)
        try:
            with told():
                chain = read_chosen(method, None)
                asked = read_panel(setting, model, kind, picture, clip, question)
                tokens = check_tokens(max_new_tokens, longest)
                whole = Request(model, setting.loading, asked, chain, tokens, setting.limits.frames)
                loaded = setting.models.get(model)
                label = f"With {chain.label}"
                yield {
                    **share.hide(),
                    **dict.fromkeys((beside, sheet), gr.update(visible=False)),
                    steps: "",
                    pruned: gr.update(value="", label=label),
                    stop: gr.update(interactive=True),
                }
                for state in ask(setting.models, model, asked, chain, tokens, event):
                    yield {
                        status: _status(state),
                        unpruned: state.unpruned.text,
                        pruned: state.pruned.text,
                        bars: _told(state, chain.label),
                    }
                if state.report is not None:
                    # The frames of a clip want the whole width.
                    shown = gr.update(value=draw_kept(loaded, asked, state.report, None), visible=True)
                    yield {
                        **share.show(whole.python(), whole.command(), whole.document(state)),
                        **({sheet: shown} if asked.is_video else {beside: gr.update(visible=True), overlay: shown}),
                        steps: draw_steps(loaded, asked, state.report),
                    }
        except gr.Error:
            yield {status: ""}
            raise
        finally:
            stops.end(session, _WORK, event)

    def halt(request: gr.Request) -> None:
        stops.stop(str(request.session_hash), _WORK)

    def fit(model: str, kind: str) -> Any:
        return picker.fit(setting.models.get(model), kind == CLIP)

    inputs = [*panel.fields, picker.written, length]
    outputs = [status, unpruned, pruned, bars, beside, overlay, sheet, steps, stop, *share.fields]
    going = go.click(handle, inputs, outputs, concurrency_id="model", **QUIET)
    going.then(lambda: gr.update(interactive=False), None, stop, **AT_ONCE)
    stop.click(halt, None, None, **AT_ONCE)
    fields = [panel.model, panel.kind]
    gr.on([panel.model.change, panel.kind.change], fit, fields, picker.fitted, **AT_ONCE)


def kept_picture(name: str) -> gr.Image:
    """A field for the tokens that were kept, unseen until there are any.

    Args:
        name: Its id.
    """
    return gr.Image(
        label="Tokens that were kept",
        show_label=False,
        format="png",
        interactive=False,
        visible=False,
        elem_id=name,
        buttons=["download", "fullscreen"],
        alt_text="the tokens that were kept, on what was asked about",
    )


def _told(state: Asked, label: str) -> str:
    if state.report is None:
        return ""
    return draw_bars([*saved(state.report), *timed(state)], label) + tell_kept(state.report)


def _status(state: Asked) -> str:
    text = f"{state.now} …" if state.now else "Stopped." if state.stopped else _done(state)
    return f'<p role="status">{escape(text)}</p>'


def _done(state: Asked) -> str:
    same = "Same answer." if state.unpruned.text == state.pruned.text else "The answers differ."
    if state.times is None:
        return same
    rounds = state.times[0].rounds
    if not rounds:
        return f"{same} Times are those of the answers."
    return f"{same} Times: medians of {rounds} rounds in alternation, {TOKENS} tokens decoded in each."
