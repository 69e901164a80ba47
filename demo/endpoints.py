"""What programs may call, through gradio_client: the tabs' work without the page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from vtprune.demo.ask import check_tokens
from vtprune.demo.asking import ask, select
from vtprune.demo.chosen import read_chosen
from vtprune.demo.compare import ANSWER, document, read_several
from vtprune.demo.comparing import compare
from vtprune.demo.drawing import draw_kept
from vtprune.demo.examples import examples
from vtprune.demo.media import read_question
from vtprune.demo.messages import told
from vtprune.demo.setting import Setting
from vtprune.demo.sharing import Request
from vtprune.demo.uploads import Clip, Picture


def endpoints(setting: Setting) -> None:
    """Add `/ask`, `/select` and `/compare` to the page, where nobody sees them."""
    limits = setting.limits

    def answer(
        model: str, picture: str | None, clip: str | None, question: str, method: str, keep: float, max_new_tokens: int
    ) -> Iterator[tuple[Any, Any]]:
        """Answer a question about a picture or a clip without and with methods, and measure both.

        Tells what was said and saved so far; in the end also the picture with the tokens that were kept.
        """
        with told():
            chain, asked = read_chosen(method, keep), read_question(question, picture, clip, limits)
            tokens = check_tokens(max_new_tokens, limits.new_tokens)
            request = Request(model, setting.loading, asked, chain, tokens, limits.frames)
            for state in ask(setting.models, model, asked, chain, tokens, threading.Event()):
                yield request.document(state), None
            if state.report is not None:
                drawn = draw_kept(setting.models.get(model), asked, state.report, chain.label)
                yield request.document(state), drawn

    def selected(
        model: str, picture: str | None, clip: str | None, question: str, method: str, keep: float
    ) -> tuple[Any, Any]:
        """Say which tokens methods keep, without answering.

        Returns the report, and the picture with the tokens that are kept.
        """
        with told():
            chain, asked = read_chosen(method, keep), read_question(question, picture, clip, limits)
            with setting.models.lease(model) as loaded:
                report = select(loaded, asked.inputs(loaded, 1), chain)
            return report.to_dict(), draw_kept(loaded, asked, report, chain.label)

    def compared(
        model: str, picture: str | None, clip: str | None, question: str, methods: list[str], keep: float
    ) -> Iterator[Any]:
        """Put several methods to the same question.

        Tells of each of them so far, the untouched model first: its answer, how like it is, and what is saved.
        """
        with told():
            chains, asked = read_several(methods, keep), read_question(question, picture, clip, limits)
            tokens = min(ANSWER, limits.new_tokens)
            for entries in compare(setting.models, model, asked, chains, tokens, threading.Event()):
                yield document(model, asked, entries)

    with gr.Column(visible=False):
        model = gr.Textbox(setting.models.names[0], label="model")
        picture, clip = Picture(type="filepath", label="picture"), Clip(label="clip")
        question = gr.Textbox(examples()[0].questions[0], label="question")
        method = gr.Textbox("divprune", label="method")
        methods = gr.JSON(["divprune", "random"], label="methods")
        keep = gr.Number(0.25, label="keep")
        tokens = gr.Number(64, precision=0, label="max_new_tokens")
        result, drawn = gr.JSON(label="result"), gr.Image(label="kept tokens", format="png")
        seen = [model, picture, clip, question]
        shared: dict[str, Any] = {"concurrency_id": "model", "show_progress": "hidden"}
        button = gr.Button()
        button.click(answer, [*seen, method, keep, tokens], [result, drawn], api_name="ask", **shared)
        button.click(selected, [*seen, method, keep], [result, drawn], api_name="select", **shared)
        button.click(compared, [*seen, methods, keep], [result], api_name="compare", **shared)
