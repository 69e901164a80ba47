"""Quick evaluations: what is refused, turns, stopping, and that visitors do not disturb each other."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vtprune.demo.work.evaluating import BATCH, MOST, Progress, Wanted, evaluate, read_wanted
from vtprune.evals.data.suites import read_suite
from vtprune.evals.runner.evaluate import evaluate as evaluate_whole

WANTED = Wanted("tiny-llava", "scenes", ("divprune", "random:keep=0.1,seed=3"), (0.25,), 9)
MEASURED = ("ttft_ms", "ttft_interval", "ttft_share", "seconds_per_question", "tokens_per_second", "pareto")


def answered(run):
    """What does not depend on the clock."""
    return [{name: one[name] for name in one if name not in MEASURED} for one in run["configurations"]]


@pytest.fixture(scope="module")
def whole(llava, tmp_path_factory):
    """What `vtprune eval` finds."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return evaluate_whole(llava, read_suite("scenes", limit=9), WANTED.configurations, folder, batch_size=BATCH)


def read(models, **changed):
    given = {
        "model": "tiny-llava",
        "suite": "scenes",
        "methods": ["divprune"],
        "budgets": ["0.5", "64"],
        "questions": 9,
    }
    return read_wanted(models, **{**given, **changed}, most_questions=100)


def test_what_is_wanted_is_read(models):
    wanted = read(
        models, methods=["divprune", "tome+fastv:layer=2,keep=0.5", "divprune"], budgets=["0.5", "64", "0.50"]
    )
    assert [one.name for one in read(models).configurations] == ["unpruned", "divprune@0.5", "divprune@64"]
    assert wanted.methods == ("divprune", "tome+fastv:layer=2,keep=0.5")
    assert wanted.command() == [
        "vtprune", "eval", "--model", "tiny-llava", "--suite", "scenes",
        "--method", "divprune", "tome+fastv:layer=2,keep=0.5", "--keep", "0.5", "64",
        "--limit", "9", "--batch-size", "4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "/etc"}, "model must be one of tiny-llava"),
        ({"suite": "/etc/passwd"}, "suite must be one of scenes, clips"),
        ({"suite": "clips"}, "takes pictures only"),
        ({"methods": []}, "methods must be at least one"),
        ({"methods": ["divprun"]}, "divprune"),
        ({"methods": ["gsearch:rates=/etc/passwd"]}, "rates"),
        ({"budgets": ["a lot"]}, "keep must be a ratio"),
        ({"budgets": ["25.0"]}, "for 25 percent write keep=0.25"),
        ({"methods": ["divprune:keep=0.5"]}, "is for a method without a budget of its own"),
        ({"questions": 0}, "questions must be a whole number between 1 and 100, got 0"),
        ({"questions": 101}, "got 101"),
        ({"questions": 1.5}, "got 1.5"),
        ({"budgets": [f"{1 + one}" for one in range(MOST + 1)]}, f"must be at most {MOST}, got {MOST + 1}"),
    ],
)
def test_what_is_refused(models, changed, said):
    with pytest.raises((ValueError, TypeError), match=said):
        read(models, **changed)


def test_it_finds_what_the_command_line_finds(models, whole, tmp_path):
    told = list(evaluate(models, WANTED, tmp_path, threading.Event()))
    assert [one.done for one in told] == [0, 4, 8, 9]
    assert told[0].run is None
    assert [one.run.summary["n"] for one in told[1:]] == [4, 8, 9]
    assert answered(told[-1].run.summary) == answered(whole)
    assert [one.ended for one in told] == [False, False, False, True]
    assert not told[-1].stopped
    assert not list(tmp_path.iterdir())


def test_its_line_of_python_finds_the_same(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(WANTED.python({"dtype": "float32"}), {})
    assert answered(json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())) == answered(whole)


def test_two_visitors_at_once_find_what_each_would_alone(models, whole, tmp_path):
    """Both want the same model, and take turns with it."""
    other = Wanted("tiny-llava", "scenes", ("fastv:layer=1",), (0.1, 0.5), 9)
    alone = list(evaluate(models, other, tmp_path, threading.Event()))[-1]
    together = threading.Barrier(2)

    def visit(wanted):
        told = evaluate(models, wanted, tmp_path, threading.Event())
        together.wait()
        return list(told)[-1]

    with ThreadPoolExecutor(2) as visitors:
        first, second = visitors.map(visit, (WANTED, other))
    assert answered(first.run.summary) == answered(whole)
    assert answered(second.run.summary) == answered(alone.run.summary)


def test_stopped_between_batches(models, tmp_path):
    stop = threading.Event()
    told = []
    for now in evaluate(models, WANTED, tmp_path, stop):
        told.append(now)
        if now.done == 4:
            stop.set()
    # The batch that was on its way, where there was one, is kept.
    assert told[-1].stopped
    assert told[-1].done == told[-1].run.summary["n"] < 9
    assert told[-1].text.startswith(f"Stopped after {told[-1].done} of 9 questions")
    assert not list(tmp_path.iterdir())
    assert not models.get("tiny-llava").model.model.language_model._forward_pre_hooks


def test_stopped_while_others_have_the_model(models, tmp_path):
    """Once it is one's turn, nothing is begun."""
    stop = threading.Event()
    told = evaluate(models, WANTED, tmp_path, stop)
    assert next(told).done == 0
    with ThreadPoolExecutor(1) as visitor:
        with models.lease("tiny-qwen2.5-vl"):
            rest = visitor.submit(list, told)
            stop.set()
        (last,) = rest.result()
    assert (last.done, last.run, last.stopped) == (0, None, True)


def test_left_in_between(models, tmp_path):
    """A page that was closed: the generator is dropped."""
    told = evaluate(models, WANTED, tmp_path, threading.Event())
    next(told), next(told)
    assert list(tmp_path.iterdir())
    told.close()
    assert not list(tmp_path.iterdir())
    with models.lease("tiny-llava") as loaded:
        assert not loaded.model.model.language_model._forward_pre_hooks


def test_a_method_that_refuses_the_model(models, tmp_path):
    told = evaluate(models, Wanted("tiny-llava", "scenes", ("holitom",), (), 4), tmp_path, threading.Event())
    next(told)
    with pytest.raises(ValueError, match="holitom cannot work on"):
        next(told)
    assert not list(tmp_path.iterdir())


def test_progress_in_words():
    assert Progress(0, 40).text == "Waiting for the first answers \N{HORIZONTAL ELLIPSIS}"
    assert Progress(12, 40, 6).text == "12 of 40 questions, 14 s left"
    assert Progress(12, 40, 120).text == "12 of 40 questions, 5 min left"
    assert Progress(40, 40, 61).text == "Done: 40 of 40 questions in 61 s."
    assert Progress(0, 40, stopped=True).text == "Stopped after 0 of 40 questions."
