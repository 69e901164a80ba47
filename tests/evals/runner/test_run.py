"""A whole run: figures, interruptions, failures."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import vtprune
from vtprune.evals.data.sample import Medium
from vtprune.evals.metrics import get_metric
from vtprune.evals.runner import asking, pictures
from vtprune.evals.runner.asking import tokens_of_rows
from vtprune.evals.runner.batches import make_batches
from vtprune.evals.runner.configurations import plan
from vtprune.evals.runner.evaluate import evaluate_by_batches, sum_up
from vtprune.evals.runner.folder import read_records
from vtprune.evals.runner.preparing import prepare
from vtprune.evals.runner.processes import Processes
from vtprune.evals.suite import ask_model, scene_questions, seen

ANSWERS = ("accuracy", "interval", "kinds", "visual_tokens_mean", "prefill_flops_mean", "kv_bytes_mean", "fidelity")


def lines(folder):
    """What was noted, times aside."""
    found = {}
    for record in read_records(folder / "questions.jsonl"):
        key = record.index, record.configuration
        assert key not in found
        found[key] = dataclasses.replace(record, ttft_ms=None, time_ms=None, picture=None)
    return found


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """A run in one go: its summary and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return run(folder), folder


def test_what_is_in_the_folder(whole):
    summary, folder = whole
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "questions.jsonl", "summary.json", "report.html", "pictures",
    }  # fmt: skip
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert [one["name"] for one in summary["configurations"]] == [
        "unpruned", "divprune@0.5", "divprune@0.1", "snapkv:keep=0.3",
    ]  # fmt: skip
    assert len(lines(folder)) == 11 * 4
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["source"] == {"suite": "scenes", "seed": 0, "limit": 11}
    assert torch.__version__.startswith(config["environment"]["torch"])


def test_answers_are_those_of_ordinary_generation(whole, loaded):
    """The same batches through the path that everything else uses."""
    questions = scene_questions(11)
    for name, chain in (("unpruned", None), ("divprune@0.1", "divprune:keep=0.1")):
        said = []
        for first in range(0, 11, 4):
            batch = questions[first : first + 4]
            arguments = (loaded.model, loaded.processor, [seen(one) for one in batch], [q.question.text for q in batch])
            if chain is None:
                said += ask_model(*arguments)
            else:
                with vtprune.applied(loaded.model, chain):
                    said += ask_model(*arguments)
        found = lines(whole[1])
        for index, answer in enumerate(said):
            assert answer.startswith(found[index, name].answer.lower())


def test_figures_follow_from_the_lines(whole):
    summary, folder = whole
    found = lines(folder).values()
    for one in summary["configurations"]:
        own = [record for record in found if record.configuration == one["name"]]
        assert one["n"] == one["answered"] == 11
        assert one["accuracy"] == pytest.approx(sum(record.score for record in own) / 11)
        assert one["visual_tokens_mean"] == pytest.approx(sum(r.visual_tokens_after for r in own) / 11)
        assert one["prefill_flops_share"] == pytest.approx(
            sum(r.flops_after for r in own) / sum(r.flops_before for r in own)
        )
        for kind, share in one["by_kind"].items():
            scores = [record.score for record in own if record.kind == kind]
            assert share == pytest.approx(sum(scores) / len(scores))
        if one["method"] is not None:
            assert one["fidelity"]["agreement"] == pytest.approx(sum(record.agrees for record in own) / 11)
            assert one["fidelity"]["kl"] == pytest.approx(sum(record.kl for record in own) / 11)
    unpruned, half, tenth, cache = summary["configurations"]
    assert unpruned["fidelity"] is None
    assert unpruned["against_unpruned"] is None
    assert unpruned["visual_tokens_share"] == unpruned["prefill_flops_share"] == unpruned["kv_bytes_share"] == 1
    assert half["visual_tokens_mean"] == 128
    assert tenth["visual_tokens_mean"] == 26
    assert tenth["prefill_flops_share"] < half["prefill_flops_share"] < 1
    assert cache["prefill_flops_share"] == 1
    assert cache["kv_bytes_share"] < 0.5


def test_tokens_of_each_question_add_up_to_the_report(loaded, scenes):
    call = prepare(loaded, scenes.samples, get_metric("exact_match"), make_batches(scenes.samples, 4)[0]).calls[0]
    asker = asking.Asker(loaded, scenes.samples, get_metric("exact_match"), 1)
    report = asker.ask(call, plan(["divprune:keep=7"], [])[1])[0].report
    tokens = tokens_of_rows(report, 4)
    assert sum(before for before, _ in tokens) == report.visual_tokens_before
    assert sum(after for _, after in tokens) == report.visual_tokens_after
    assert {after for _, after in tokens} == {7}


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_goes_on(run, whole, tmp_path, after, monkeypatch):
    batches = 0

    def stop(batch):
        nonlocal batches
        batches += 1
        if batches == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_batch=stop)
    kept = (tmp_path / "questions.jsonl").read_text()
    assert len(lines(tmp_path)) == after * 4 * 4
    assert not (tmp_path / "summary.json").exists()
    told = []
    run(tmp_path, on_start=lambda todo, done: told.append((todo, done)))
    assert told == [(11 - 4 * after, 4 * after)]
    assert (tmp_path / "questions.jsonl").read_text().startswith(kept)
    assert lines(tmp_path) == lines(whole[1])


def test_a_finished_run_asks_nothing(run, whole, monkeypatch):
    summary, folder = whole
    monkeypatch.setattr(asking, "answer", None)
    assert run(folder) == json.loads(json.dumps(summary))


def test_starting_anew(run, whole, tmp_path):
    run(tmp_path, configurations=plan([], []))
    with pytest.raises(ValueError, match="other settings"):
        run(tmp_path)
    run(tmp_path, fresh=True)
    assert lines(tmp_path) == lines(whole[1])


def test_the_unpruned_model_alone_knows_what_it_takes(run, whole, tmp_path):
    alone = run(tmp_path, configurations=plan([], []))["configurations"][0]
    beside = whole[0]["configurations"][0]
    for name in ("accuracy", "visual_tokens_mean", "prefill_flops_mean", "kv_bytes_mean"):
        assert alone[name] == beside[name] is not None


def broken(scenes, index):
    """The questions, one of them about a picture that cannot be read."""

    def load():
        raise OSError("truncated file")

    samples = list(scenes.samples)
    samples[index] = dataclasses.replace(samples[index], media=(Medium("bad.png", "image", load),))
    return dataclasses.replace(scenes, samples=tuple(samples), source={"broken": index})


def test_a_picture_that_cannot_be_read_fails_alone(run, whole, scenes, tmp_path):
    summary = run(tmp_path, questions=broken(scenes, 5))
    assert summary["failed"] == 1
    assert summary["errors"][0]["error"] == "OSError: truncated file"
    found, sound = lines(tmp_path), lines(whole[1])
    for (index, name), record in found.items():
        if index == 5:
            assert record.error == "OSError: truncated file"
            assert record.answer is None
        else:
            assert record.answer == sound[index, name].answer
    assert all(one["n"] == 10 and one["failed"] == 1 for one in summary["configurations"])


def test_a_question_on_which_the_model_fails_fails_alone(run, whole, scenes, tmp_path, monkeypatch):
    """The others of its batch are asked again, each alone."""
    answer, bad = asking.answer, None

    def fails(loaded, inputs, tokens):
        nonlocal bad
        if bad is None:
            bad = inputs["pixel_values"][2].clone()
        if any(picture.equal(bad) for picture in inputs["pixel_values"]):
            raise RuntimeError("out of luck\nand memory")
        return answer(loaded, inputs, tokens)

    monkeypatch.setattr(asking, "answer", fails)
    summary = run(tmp_path)
    failed = {index for (index, name), record in lines(tmp_path).items() if record.error is not None}
    same = {i for i, one in enumerate(scenes.samples) if one.media[0].name == scenes.samples[2].media[0].name}
    assert failed == same
    assert {record.error for record in lines(tmp_path).values()} == {None, "RuntimeError: out of luck"}
    assert summary["failed"] == len(same)
    assert lines(tmp_path)[8, "unpruned"] == lines(whole[1])[8, "unpruned"]


def test_without_right_answers_there_is_fidelity(run, scenes, tmp_path):
    unknown = [dataclasses.replace(one, answers=()) for one in scenes.samples]
    summary = run(tmp_path, questions=dataclasses.replace(scenes, samples=tuple(unknown), source={"answers": False}))
    unpruned, half, *_ = summary["configurations"]
    assert unpruned["accuracy"] is None
    assert half["accuracy"] is None
    assert half["n"] == 0
    assert 0 <= half["fidelity"]["agreement"] <= 1
    assert half["fidelity"]["kl"] > 0
    assert unpruned["pareto"]["tokens"] is True


def test_a_method_that_refuses_the_model_is_said_before_anything_is_asked(run, tmp_path):
    with pytest.raises(ValueError, match="holitom"):
        run(tmp_path / "new", configurations=plan(["random", "holitom:frames=1"], []))
    assert not (tmp_path / "new").exists()


def test_an_overlay_that_cannot_be_drawn_loses_no_answer(run, whole, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise ValueError("frames of several grids")

    monkeypatch.setattr(pictures, "draw_overlays", refuse)
    summary = run(tmp_path)
    assert summary["failed"] == 0
    assert lines(tmp_path) == lines(whole[1])
    assert "frames of several grids" in caplog.text


def test_turns_are_taken_batch_by_batch(run, whole, loaded, scenes, tmp_path, monkeypatch):
    """Between batches somebody else has the model, with a method of his own; within a turn nobody has."""
    held, between = [], []

    @contextlib.contextmanager
    def turn():
        assert not held
        held.append(True)
        yield
        held.pop()

    answer = asking.answer

    def guarded(*arguments):
        assert held
        return answer(*arguments)

    def elsewhere(batch):
        assert not held
        between.append(batch.number)
        with vtprune.applied(loaded.model, "random:keep=3,seed=1"):
            answer(loaded, call.inputs, 1)

    monkeypatch.setattr(asking, "answer", guarded)
    (call,) = prepare(loaded, scenes.samples, get_metric("exact_match"), make_batches(scenes.samples, 2)[0]).calls
    run(tmp_path, turn=turn, on_batch=elsewhere)
    assert between == [0, 1, 2]
    assert lines(tmp_path) == lines(whole[1])


class Stopped(Exception):
    """What a test stops a run with."""


def test_a_run_that_is_stopped_while_it_waits_for_its_turn_goes_on_later(run, whole, tmp_path):
    turns = 0

    def turn():
        nonlocal turns
        turns += 1
        if turns == 3 + 2:  # a look at each of three configurations, then batches
            raise Stopped
        return contextlib.nullcontext()

    with pytest.raises(Stopped):
        run(tmp_path, turn=turn)
    assert len(lines(tmp_path)) == 4 * 4
    assert not (tmp_path / "summary.json").exists()
    summary = run(tmp_path)  # nobody keeps it out of the folder
    assert lines(tmp_path) == lines(whole[1])
    for one, other in zip(summary["configurations"], whole[0]["configurations"], strict=True):
        assert {name: one[name] for name in ANSWERS} == {name: other[name] for name in ANSWERS}


def test_a_run_may_be_left_between_batches_in_another_thread(loaded, run, whole, scenes, tmp_path):
    """What is known so far can be summed up, nobody is kept out of the folder, and the rest is asked later."""
    configurations = plan(["divprune", "snapkv:keep=0.3"], [0.5, 0.1])
    batches = evaluate_by_batches(
        loaded, scenes, configurations, tmp_path, batch_size=4, max_new_tokens=3, pictures=1, processes=Processes()
    )
    assert [next(batches).number, next(batches).number] == [0, 1]
    known = read_records(tmp_path / "questions.jsonl")
    so_far = sum_up(json.loads((tmp_path / "config.json").read_text()), scenes, configurations, known)
    assert so_far["n"] == 8
    assert so_far["configurations"][0]["accuracy"] == sum(r.score for r in known if r.configuration == "unpruned") / 8
    with ThreadPoolExecutor(1) as elsewhere:
        elsewhere.submit(batches.close).result()
    assert {path.name for path in tmp_path.iterdir()} <= {"config.json", "questions.jsonl", "pictures"}
    run(tmp_path)
    assert lines(tmp_path) == lines(whole[1])
