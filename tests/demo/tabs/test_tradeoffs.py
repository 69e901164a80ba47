"""The tab of trade-offs, without a browser: what its handlers show, and what they refuse."""

from __future__ import annotations

import base64
import json
import re
from types import SimpleNamespace

import gradio as gr
import pytest

from tests.evals.pages.folders import write_folder
from vtprune.demo.drawn.curves import draw_curves, tell_figures
from vtprune.demo.tabs.tradeoffs import Visit, tradeoffs_tab
from vtprune.demo.work.finished import find_runs
from vtprune.demo.work.stops import Stops
from vtprune.evals.pages.runs import read_run

EXAMPLE = "Example: tiny-llava, 300 questions of scenes"


@pytest.fixture
def handlers(setting):
    """The handlers of a page with this tab, by name; and the names of what they change."""
    with gr.Blocks() as page:
        model = gr.Dropdown(setting.models.names, value="tiny-llava", label="Model")
        tradeoffs_tab(setting, model, Stops())
    return {one.name: one.fn for one in page.fns.values()}


def named(update):
    """An update by the elements' ids."""
    return {one.elem_id or type(one).__name__: value for one, value in update.items()}


def start(handlers, seen, session="visitor", methods=("divprune",), count=5):
    request = SimpleNamespace(session_hash=session)
    return handlers["start"]("tiny-llava", "scenes", methods, ["0.25"], count, seen, request)


def test_a_run_is_shown_against_the_cost_that_was_chosen(handlers):
    seen = Visit(EXAMPLE)
    shown = named(handlers["turn"]("ttft", seen))
    assert "time to first token, % of unpruned" in shown["tradeoffs-plot"]
    assert "divprune@<wbr>0.25" in shown["tradeoffs-figures"]


@pytest.mark.parametrize("named", ["/etc/passwd", "../run-tiny-llava", "", "Yours 1"])
def test_only_runs_of_the_list_are_read(handlers, named):
    with pytest.raises(gr.Error, match="run must be one of the list"):
        handlers["choose"](named, Visit(EXAMPLE))


def test_an_unknown_view_is_refused(handlers):
    with pytest.raises(gr.Error, match="view must be one of tokens, flops, ttft"):
        handlers["turn"]("money", Visit(EXAMPLE))


def test_an_evaluation_grows_and_stays_with_its_visitor(handlers):
    mine, others = Visit(EXAMPLE), Visit(EXAMPLE)
    updates = [named(one) for one in start(handlers, mine)]
    (name,) = mine.own
    assert updates[0]["tradeoffs-runs"]["value"] == name
    assert updates[0]["tradeoffs-runs"]["choices"] == [name, EXAMPLE]
    assert "4 questions of scenes" in updates[-2]["tradeoffs-plot"]
    assert "5 questions of scenes" in updates[-1]["tradeoffs-plot"]
    assert "Done: 5 of 5 questions" in updates[-1]["tradeoffs-status"]
    assert "divprune@<wbr>0.25" in named(handlers["choose"](name, mine))["tradeoffs-figures"]
    with pytest.raises(gr.Error):
        handlers["choose"](name, others)
    assert named(handlers["settle"](others))["tradeoffs-runs"]["choices"] == [EXAMPLE]


def test_what_is_wrong_is_told_before_there_is_a_queue(handlers):
    checked = named(handlers["check"]("tiny-llava", "scenes", ["divprune"], ["0.25"], 5))
    assert "evaluate(load_model('tiny-llava'), read_suite('scenes', limit=5)" in checked["tradeoffs-python"]
    assert checked["tradeoffs-command"] == (
        "vtprune eval --model tiny-llava --suite scenes --method divprune --keep 0.25 --limit 5 --batch-size 4"
    )
    with pytest.raises(gr.Error, match="questions must be a whole number between 1 and 100, got 101"):
        handlers["check"]("tiny-llava", "scenes", ["divprune"], ["0.25"], 101)


def test_another_run_may_be_looked_at_meanwhile(handlers):
    seen = Visit(EXAMPLE)
    running = start(handlers, seen)
    next(running), next(running)
    handlers["choose"](EXAMPLE, seen)
    rest = [named(one) for one in running]
    assert all("tradeoffs-plot" not in one and "tradeoffs-status" in one for one in rest)
    assert named(handlers["settle"](seen))["tradeoffs-runs"]["value"] == EXAMPLE


def test_the_stop_button_stops_the_evaluation_of_its_visitor(handlers):
    mine, others = Visit(EXAMPLE), Visit(EXAMPLE)
    running, beside = start(handlers, mine, "me", count=9), start(handlers, others, "somebody", count=5)
    for one in (running, beside):
        next(one), next(one), next(one)
    handlers["halt"](SimpleNamespace(session_hash="me"))
    assert "Stopped after" in named(list(running)[-1])["tradeoffs-status"]
    assert "Done: 5 of 5" in named(list(beside)[-1])["tradeoffs-status"]
    assert next(iter(mine.own.values())).summary["n"] < 9


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"methods": ["divprun"]}, "divprune"),
        ({"methods": ["holitom"]}, "holitom cannot work on"),
        ({"count": 0}, "questions must be a whole number between 1 and 100, got 0"),
    ],
)
def test_what_is_refused_starts_nothing(handlers, given, said, setting):
    seen = Visit(EXAMPLE)
    with pytest.raises(gr.Error, match=said):
        list(start(handlers, seen, **given))
    assert not seen.own
    assert seen.chosen == EXAMPLE
    assert not list(setting.scratch.iterdir())


def test_what_is_typed_is_escaped(tmp_path):
    run = read_run(write_folder(tmp_path / "run", ["divprune"], [0.5], n=3, model="<b>&"))
    assert "<b>" not in draw_curves(run, "tokens") + tell_figures(run)


def test_figures_without_a_plot_and_as_a_file(tmp_path):
    run = find_runs([write_folder(tmp_path / "run", ["divprune"], [], n=3)])
    run = next(iter(run.values()))
    assert "nothing to draw" in draw_curves(run, "tokens")
    (data,) = re.findall(r'href="data:application/json;base64,([^"]+)"', tell_figures(run))
    assert json.loads(base64.b64decode(data)) == run.summary
