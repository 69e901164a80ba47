"""The tab where sliders move the tokens that are kept, at once: one prefill for each change, and nothing decoded."""

from __future__ import annotations

import dataclasses
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from vtprune.demo.drawn.bars import draw_bars, saved
from vtprune.demo.drawn.drawing import as_jpeg, draw_kept, tell_kept
from vtprune.demo.drawn.steps import draw_steps
from vtprune.demo.server.messages import told
from vtprune.demo.setting import Setting
from vtprune.demo.tabs.ask import kept_picture
from vtprune.demo.tabs.controls import offered
from vtprune.demo.tabs.events import AT_ONCE, QUIET
from vtprune.demo.tabs.panel import CLIP, Panel, read_panel
from vtprune.demo.tabs.share import ShareBox
from vtprune.demo.work.asking import select
from vtprune.demo.work.chosen import read_chosen
from vtprune.demo.work.media import Question
from vtprune.demo.work.sharing import Request
from vtprune.integrations import integrate
from vtprune.methods import get_method

EXPLORE = "Explore"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A question made ready for a model; kept from one change to the next.

    Args:
        asked: What it was made from.
        question: The question.
        inputs: What the model is called with.
    """

    asked: tuple[Any, ...]
    question: Question
    inputs: Any


def explore_tab(setting: Setting, panel: Panel, tabs: gr.Tabs) -> None:
    """Lay out the tab.

    Args:
        setting: What the demo was started with.
        panel: What is asked.
        tabs: Those that this one is among; as long as it is not in sight, nothing is computed for it.
    """
    in_sight = gr.State(False)
    prepared = gr.State(time_to_live=60 * setting.limits.upload_minutes)
    with gr.Row():
        method = gr.Dropdown(
            offered(setting.models.get(setting.models.names[0]), False), value="fastv", label="Method", interactive=True
        )
        keep = gr.Slider(
            0.01,
            1,
            value=0.25,
            step=0.01,
            label="Budget",
            info="Share of the visual tokens that stay.",
            elem_id="explore-keep",
        )
        layer = gr.Slider(
            0,
            31,
            value=2,
            step=1,
            label="Layer",
            info="Where a method of one decoder layer acts.",
            elem_id="explore-layer",
        )
    with gr.Row():
        with gr.Column(min_width=340):
            overlay = kept_picture("explore-overlay")
        with gr.Column(min_width=340):
            bars = gr.HTML(elem_id="explore-bars")
    steps = gr.HTML(elem_id="explore-steps")
    share = ShareBox("explore")

    def handle(
        model: str,
        kind: str,
        picture: str | None,
        clip: str | None,
        question: str,
        name: str,
        budget: float,
        number: int,
        known: Prepared | None,
        seen: bool,
    ) -> Any:
        if not seen or not question or (clip if kind == CLIP else picture) is None:
            return gr.skip()  # while it is out of sight, or another picture is on its way
        with told():
            loaded = setting.models.get(model)
            asked = (model, kind, picture, clip, question)
            if known is None or known.asked != asked:
                read = read_panel(setting, model, kind, picture, clip, question)
                known = Prepared(asked, read, read.inputs(loaded, 1))
            last = len(integrate(loaded.model).decoder_layers) - 1
            takes, number = _takes_layer(name), min(int(number), last)
            chain = read_chosen(f"{name}:layer={number}" if takes else name, budget)
            with setting.models.lease(model):
                report = select(loaded, known.inputs, chain)
            drawn = draw_kept(loaded, known.question, report, None)
            file = save_bytes_to_cache(as_jpeg(drawn), "kept.jpg", overlay.GRADIO_CACHE)
            request = Request(model, setting.loading, known.question, chain, 1, setting.limits.frames)
            return {
                overlay: gr.update(value=file, visible=True),
                steps: draw_steps(loaded, known.question, report),
                bars: draw_bars(saved(report), chain.label) + tell_kept(report),
                keep: gr.update(interactive=chain.keep is not None),
                layer: gr.update(interactive=takes, maximum=last, value=number),
                prepared: known,
                **share.show(request.python(), request.command(), report.to_dict()),
            }

    def choices(model: str, kind: str) -> Any:
        return gr.update(choices=offered(setting.models.get(model), kind == CLIP))

    inputs = [*panel.fields, method, keep, layer, prepared, in_sight]
    outputs = [overlay, bars, steps, keep, layer, prepared, *share.fields]
    drawing: dict[str, Any] = {"concurrency_id": "model", **QUIET}
    tabs.select(_in_sight, None, in_sight, **AT_ONCE).then(handle, inputs, outputs, **drawing)
    changes = [
        method.change,
        keep.change,
        layer.change,
        panel.model.change,
        panel.picture.change,
        panel.clip.change,
        panel.question.change,
    ]
    gr.on(changes, handle, inputs, outputs, trigger_mode="always_last", **drawing)
    fields = [panel.model, panel.kind]
    gr.on([panel.model.change, panel.kind.change], choices, fields, method, **AT_ONCE)


def _in_sight(event: gr.SelectData) -> bool:
    return event.value == EXPLORE


def _takes_layer(name: str) -> bool:
    return any(field.name == "layer" for field in dataclasses.fields(get_method(name)))  # type: ignore[arg-type]
