"""A question without and with methods; several methods at one question; which tokens they keep."""

from __future__ import annotations

import threading

import pytest
import torch

import vtprune.run
from vtprune.demo.work import asking
from vtprune.demo.work.asking import ask, select
from vtprune.demo.work.chosen import read_chosen
from vtprune.demo.work.comparing import compare

NAME = "tiny-llava"


@pytest.fixture
def expected(llava, question):
    return vtprune.run.compare(llava, [question.medium], question.text, "fastv:layer=2", 0.25, max_new_tokens=8)


def test_it_is_what_the_command_line_says(models, question, chain, expected):
    *_, last = ask(models, NAME, question, chain, 8, threading.Event())
    assert (last.pruned.text, last.unpruned.text) == (expected.answer, expected.baseline_answer)
    assert last.report == expected.report
    assert (last.now, last.stopped) == ("", False)
    assert last.times is not None


def test_it_tells_how_far_it_is(models, question, chain):
    steps = [state.now for state in ask(models, NAME, question, chain, 8, threading.Event())]
    found = list(dict.fromkeys(steps))
    assert found == [
        "waiting for the model",
        "answering without pruning",
        "answering with pruning",
        "measuring",
        "",
    ]


def test_a_stop_leaves_out_what_comes_behind(models, question, chain):
    stop, told = threading.Event(), []
    for state in ask(models, NAME, question, chain, 8, stop):
        told.append(state)
        if state.unpruned.tokens:
            stop.set()
    assert told[-1].stopped
    assert told[-1].report is None
    assert told[-1].times is None


def test_a_slow_model_is_not_measured_again(models, question, chain, monkeypatch):
    monkeypatch.setattr(asking, "PATIENCE", 0)
    *_, last = ask(models, NAME, question, chain, 8, threading.Event())
    assert [one.rounds for one in last.times] == [0, 0]
    assert [one.ttft_ms for one in last.times] == [last.unpruned.ttft_ms, last.pruned.ttft_ms]


def test_a_model_that_was_not_named(models, question, chain):
    with pytest.raises(ValueError, match="model must be one of"):
        list(ask(models, "owner/other", question, chain, 8, threading.Event()))


@pytest.mark.parametrize("written", ["fastv:layer=2", "tome:keep=0.5+divprune", "exit:layer=2", "snapkv"])
def test_a_selection_is_that_of_an_answer(llava, question, written):
    chain = read_chosen(written, 0.25)
    inputs = question.inputs(llava, 1)
    report = select(llava, inputs, chain)
    with torch.inference_mode(), vtprune.applied(llava.model, chain.methods):
        llava.model.generate(**inputs, max_new_tokens=1, do_sample=False)
        assert report == vtprune.report(llava.model)


def test_a_comparison(models, llava, question):
    chains = [read_chosen(one, 0.25) for one in ("divprune", "fastv:layer=2", "evs")]
    steps = list(compare(models, NAME, question, chains, 8, threading.Event()))
    assert [len(entries) for entries in steps] == [1, 2, 3, 4, 4]
    unpruned, divprune, fastv, evs = steps[-1]
    assert unpruned.report is None
    assert (unpruned.likeness, unpruned.same) == (1.0, True)
    for entry, name in ((divprune, "divprune"), (fastv, "fastv:layer=2")):
        alone = vtprune.run.compare(llava, [question.medium], question.text, name, 0.25, max_new_tokens=8)
        assert (entry.answer, entry.report) == (alone.answer, alone.report)
        assert entry.same == (alone.answer == alone.baseline_answer)
        assert 0 < entry.likeness <= 1
        assert entry.ttft_ms > 0
    assert evs.label == "evs, keep=0.25"


def test_a_method_that_refuses_says_so_beside_the_others(models, question):
    chains = [read_chosen(one, 0.25) for one in ("fastv:layer=40", "divprune")]
    *_, entries = compare(models, NAME, question, chains, 4, threading.Event())
    assert "layer" in entries[1].error
    assert entries[1].ttft_ms is None
    assert entries[2].answer


def test_likeness_is_one_minus_the_distance(models, llava, question):
    chain = read_chosen("random", 0.1)
    *_, entries = compare(models, NAME, question, [chain], 4, threading.Event())
    inputs = question.inputs(llava, 4)
    with torch.inference_mode():
        before = llava.model(**inputs).logits[0, -1].float().softmax(-1)
        with vtprune.applied(llava.model, chain.methods):
            after = llava.model(**inputs).logits[0, -1].float().softmax(-1)
    assert entries[1].likeness == pytest.approx(1 - (before - after).abs().sum().item() / 2, abs=1e-4)


def test_a_stopped_comparison_begins_nothing_further(models, question):
    stop, steps = threading.Event(), []
    chains = [read_chosen(one, 0.25) for one in ("divprune", "random")]
    for entries in compare(models, NAME, question, chains, 4, stop):
        steps.append(entries)
        stop.set()
    assert len(steps) == 1
