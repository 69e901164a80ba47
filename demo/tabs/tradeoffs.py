"""The tab of trade-offs: the curves of finished runs, and of quick evaluations that visitors start."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr

from vtprune.demo.drawn.curves import draw_curves, tell_figures
from vtprune.demo.server.messages import told
from vtprune.demo.setting import Setting
from vtprune.demo.tabs.controls import method_list
from vtprune.demo.tabs.events import AT_ONCE, QUIET
from vtprune.demo.work.evaluating import Progress, evaluate, read_wanted
from vtprune.demo.work.finished import find_runs
from vtprune.demo.work.sharing import flags
from vtprune.demo.work.stops import Stops
from vtprune.evals.pages.lines import View
from vtprune.evals.pages.plots import NAMES
from vtprune.evals.pages.runs import Run

_WORK = "evaluate"
_WAITING = "<p>The curves appear with the first answers, and grow.</p>"


@dataclasses.dataclass
class Visit:
    """What a visitor looks at, and the evaluations that were started in this session; nobody else sees them.

    Args:
        chosen: Name of the run.
        view: The cost that quality is drawn against.
        own: By name; None before the first answers.
        started: How many evaluations were.
    """

    chosen: str
    view: View = "tokens"
    own: dict[str, Run | None] = dataclasses.field(default_factory=dict)
    started: int = 0


def tradeoffs_tab(setting: Setting, model: gr.Dropdown, stops: Stops) -> None:
    """Lay out the tab.

    Args:
        setting: What the demo was started with.
        model: Where a model is chosen.
        stops: What stops the work of visitors.

    Raises:
        ValueError: A folder of results holds none.
    """
    finished = find_runs(setting.results)
    first = next(iter(finished))
    visit = gr.State(Visit(first))
    with gr.Row():
        runs = gr.Dropdown(
            list(finished),
            value=first,
            label="Run",
            filterable=False,
            scale=2,
            min_width=280,
            elem_id="tradeoffs-runs",
        )
        view = gr.Radio(
            [(name, view) for view, name in NAMES.items()],
            value="tokens",
            label="Quality against",
            scale=3,
            min_width=280,
            elem_id="tradeoffs-view",
        )
    with gr.Accordion("Evaluate methods of your choice", open=False, elem_id="tradeoffs-quick"):
        methods = method_list("Methods, or chains as the command line writes them")
        with gr.Row():
            budgets = gr.Dropdown(
                ["0.75", "0.5", "0.25", "0.1", "0.05"],
                value=["0.5", "0.25", "0.1"],
                multiselect=True,
                allow_custom_value=True,
                label="Budgets",
                info="Shares of the visual tokens that stay (0.25), or numbers of tokens (64).",
                scale=3,
                min_width=280,
            )
            suite = gr.Radio(
                [("pictures", "scenes"), ("clips", "clips")],
                value="scenes",
                label="Questions about",
                info="Drawn on the fly; no model has seen them.",
                scale=2,
                min_width=200,
            )
            count = gr.Slider(
                1,
                setting.limits.questions,
                value=min(32, setting.limits.questions),
                step=1,
                label="How many",
                info="More of them: narrower intervals.",
                scale=2,
                min_width=200,
            )
        with gr.Row():
            go = gr.Button("Evaluate", variant="primary", elem_id="tradeoffs-go")
            stop = gr.Button("Stop", interactive=False, elem_id="tradeoffs-stop")
        status = gr.HTML(elem_id="tradeoffs-status", elem_classes="status")
        with gr.Column(visible=False) as same:
            code: dict[str, Any] = {"interactive": False, "wrap_lines": True}
            python = gr.Code(label="Python that does the same", language="python", elem_id="tradeoffs-python", **code)
            command = gr.Code(
                label="Command line that does the same", language="shell", lines=1, elem_id="tradeoffs-command", **code
            )
    plot = gr.HTML(draw_curves(finished[first], "tokens"), elem_id="tradeoffs-plot", elem_classes="plot")
    figures = gr.HTML(tell_figures(finished[first]), elem_id="tradeoffs-figures")

    def shown(seen: Visit) -> dict[Any, Any]:
        run = seen.own[seen.chosen] if seen.chosen in seen.own else finished[seen.chosen]
        if run is None:
            return {plot: _WAITING, figures: ""}
        return {plot: draw_curves(run, seen.view), figures: tell_figures(run)}

    def choose(chosen: str, seen: Visit) -> dict[Any, Any]:
        with told():
            if chosen not in finished and chosen not in seen.own:
                raise ValueError(f"run must be one of the list, got {chosen!r}.")
            seen.chosen = chosen
            return shown(seen)

    def turn(view: str, seen: Visit) -> dict[Any, Any]:
        with told():
            if view not in NAMES:
                raise ValueError(f"view must be one of {', '.join(NAMES)}, got {view!r}.")
            seen.view = view
            return shown(seen)

    def check(model: str, suite: str, methods: Sequence[str], budgets: Sequence[str], count: float) -> dict[Any, Any]:
        """What is wrong is told at once; otherwise there may be others before."""
        with told():
            wanted = read_wanted(setting.models, model, suite, methods, budgets, count, setting.limits.questions)
        return {
            status: _said("Waiting for a place in the queue …"),
            same: gr.update(visible=True),
            python: wanted.python(setting.loading),
            command: shlex.join([*wanted.command(), *flags(setting.loading)]),
            go: gr.update(interactive=False),
        }

    def start(
        model: str,
        suite: str,
        methods: Sequence[str],
        budgets: Sequence[str],
        count: float,
        seen: Visit,
        request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:
        session = str(request.session_hash)
        with told():
            wanted = read_wanted(setting.models, model, suite, methods, budgets, count, setting.limits.questions)
            event = stops.begin(session, _WORK)
            seen.started += 1
            name, before = f"Yours {seen.started}: {', '.join(wanted.methods)}; {model} on {suite}", seen.chosen
            seen.own[name], seen.chosen = None, name
            try:
                known = gr.update(choices=[*seen.own, *finished], value=name)
                yield {runs: known, stop: gr.update(interactive=True)}
                for now in evaluate(setting.models, wanted, setting.scratch, event):
                    seen.own[name] = now.run
                    yield {status: _status(now), **(shown(seen) if seen.chosen == name else {})}
            except Exception:
                yield {status: ""}
                raise
            finally:
                stops.end(session, _WORK, event)
                if seen.own[name] is None:  # nothing was answered
                    del seen.own[name]
                    seen.chosen = before if seen.chosen == name else seen.chosen

    def settle(seen: Visit) -> dict[Any, Any]:
        """Whatever came of it, the page shows what there is."""
        known = gr.update(choices=[*seen.own, *finished], value=seen.chosen)
        buttons = {go: gr.update(interactive=True), stop: gr.update(interactive=False)}
        return {runs: known, **buttons, **shown(seen)}

    def halt(request: gr.Request) -> None:
        stops.stop(str(request.session_hash), _WORK)

    runs.input(choose, [runs, visit], [plot, figures], **QUIET)
    view.input(turn, [view, visit], [plot, figures], **QUIET)
    wanted = [model, suite, methods, budgets, count]
    # Not past the queue: errors of what does not go through it are not shown.
    checked = go.click(check, wanted, [status, same, python, command, go], concurrency_limit=None, **QUIET)
    going = checked.success(
        start,
        [*wanted, visit],
        [runs, status, stop, plot, figures],
        concurrency_id="evaluation",
        concurrency_limit=setting.limits.at_once,
        **QUIET,
    )
    going.then(settle, visit, [runs, go, stop, plot, figures], **QUIET)
    stop.click(halt, None, None, **AT_ONCE)


def _status(now: Progress) -> str:
    share = 100 * now.done / now.wanted
    bar = (
        f'<div class="progress" role="progressbar" aria-label="questions answered" aria-valuenow="{share:.0f}">'
        f'<span style="width: {share:.0f}%"></span></div>'
    )
    return ("" if now.ended else bar) + _said(now.text)


def _said(text: str) -> str:
    return f'<p role="status">{escape(text)}</p>'
