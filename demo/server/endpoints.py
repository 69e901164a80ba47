"""What programs may call, through gradio_client: the tabs' work without the page."""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncIterator, Generator
from typing import Any

import gradio as gr

from vtprune.demo.drawn.drawing import draw_kept
from vtprune.demo.server.arguments import Argument
from vtprune.demo.server.messages import told
from vtprune.demo.server.uploads import Clip, Picture
from vtprune.demo.setting import Setting
from vtprune.demo.work.asking import ask, check_tokens, select
from vtprune.demo.work.chosen import read_chosen
from vtprune.demo.work.comparing import ANSWER, MOST, compare, document, read_several
from vtprune.demo.work.examples import examples
from vtprune.demo.work.following import Step, follow
from vtprune.demo.work.media import Question, read_question
from vtprune.demo.work.sharing import Request
from vtprune.demo.work.stops import Stops


def endpoints(setting: Setting, stops: Stops) -> None:
    """Add `/ask`, `/select` and `/compare` to the page, where nobody sees them.

    Args:
        setting: What the demo was started with.
        stops: What stops the work of visitors.
    """
    limits = setting.limits

    def read(question: Any, picture: str | None, clip: str | None) -> Question:
        if picture is None and clip is None:
            picture = str(examples()[0].file)
        return read_question(question, picture, clip, limits)

    async def followed(work: Generator[Step, None, None], stop: threading.Event, session: str) -> AsyncIterator[Step]:
        name = uuid.uuid4().hex
        stops.add(session, name, stop)
        try:
            async for step in follow(work, stop):
                yield step
        finally:
            stops.end(session, name, stop)

    async def answer(
        request: gr.Request,
        model: Any,
        question: Any,
        method: Any,
        keep: Any,
        max_new_tokens: Any,
        picture: str | None = None,
        clip: str | None = None,
    ) -> AsyncIterator[tuple[Any, Any]]:
        """Answer a question about a picture or a clip without and with methods, and measure both.

        What is said and saved comes while it is found out; in the end also the picture with the tokens that were kept.
        """
        stop = threading.Event()

        def work() -> Generator[tuple[Any, Any], None, None]:
            with told():
                chain, asked = read_chosen(method, keep), read(question, picture, clip)
                tokens = check_tokens(max_new_tokens, limits.new_tokens)
                loaded = setting.models.get(model)
                whole = Request(model, setting.loading, asked, chain, tokens, limits.frames)
                for state in ask(setting.models, model, asked, chain, tokens, stop):
                    yield whole.document(state), None
                if state.report is not None:
                    drawn = draw_kept(loaded, asked, state.report, chain.label)
                    yield whole.document(state), drawn

        async for step in followed(work(), stop, str(request.session_hash)):
            yield step

    def selected(
        model: Any, question: Any, method: Any, keep: Any, picture: str | None = None, clip: str | None = None
    ) -> tuple[Any, Any]:
        """Say which visual tokens methods keep, without answering: the report, and the picture with those tokens."""
        with told():
            chain, asked = read_chosen(method, keep), read(question, picture, clip)
            with setting.models.lease(model) as loaded:
                report = select(loaded, asked.inputs(loaded, 1), chain)
            return report.to_dict(), draw_kept(loaded, asked, report, chain.label)

    async def compared(
        request: gr.Request,
        model: Any,
        question: Any,
        methods: Any,
        keep: Any,
        picture: str | None = None,
        clip: str | None = None,
    ) -> AsyncIterator[Any]:
        """Put several methods to the same question.

        Their entries come one by one, the untouched model's first: the answer, how like it is, and what is saved.
        """
        stop = threading.Event()

        def work() -> Generator[Any, None, None]:
            with told():
                chains, asked = read_several(methods, keep), read(question, picture, clip)
                tokens = min(ANSWER, limits.new_tokens)
                for entries in compare(setting.models, model, asked, chains, tokens, stop):
                    yield document(model, asked, entries)

        async for step in followed(work(), stop, str(request.session_hash)):
            yield step

    names, longest = setting.models.names, limits.new_tokens
    with gr.Column(visible=False):
        model = Argument("model", names[0], "string", f"One of {', '.join(names)}.")
        seen = [Picture(type="filepath", label="picture"), Clip(label="clip")]
        question = Argument("question", examples()[0].questions[0], "string", f"At most {limits.prompt:,} letters.")
        written = "as the command line writes it, with parameters or as a chain: tome+fastv:layer=2"
        method = Argument("method", "divprune", "string", f"A method {written}.")
        methods = Argument("methods", ["divprune", "random"], "array", f"At most {MOST} methods, each {written}.")
        keep = Argument(
            "keep", 0.25, "number", "Share of the visual tokens that stay, in (0, 1], or a whole number of tokens."
        )
        tokens = Argument(
            "max_new_tokens", min(64, longest), "integer", f"Longest answer in tokens, at most {longest}."
        )
        result, drawn = gr.JSON(label="result"), gr.Image(label="kept tokens", format="png")
        shared: dict[str, Any] = {"concurrency_id": "model", "show_progress": "hidden"}
        button = gr.Button()
        button.click(answer, [model, question, method, keep, tokens, *seen], [result, drawn], api_name="ask", **shared)
        button.click(selected, [model, question, method, keep, *seen], [result, drawn], api_name="select", **shared)
        button.click(compared, [model, question, methods, keep, *seen], [result], api_name="compare", **shared)
