"""An answer as it comes is the answer, and it ends when it is to end."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch

import vtprune
from vtprune.demo.work.answering import Answer, stream_answer
from vtprune.demo.work.measuring import measure

SETTINGS = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}


@pytest.fixture
def longer(llava, monkeypatch):
    """The model's answers are twelve tokens long."""
    generate = llava.model.generate
    monkeypatch.setattr(llava.model, "generate", lambda **settings: generate(**{**settings, "min_new_tokens": 12}))
    return llava


def _generated(loaded, inputs):
    with torch.inference_mode():
        out = loaded.model.generate(**inputs, **SETTINGS)
    return loaded.processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("pruned", [False, True])
def test_it_is_the_answer_of_generate(longer, question, chain, pruned):
    inputs, methods = question.inputs(longer, 12), chain.methods if pruned else []
    told = list(stream_answer(longer, inputs, methods, 12, threading.Event()))
    if pruned:
        with vtprune.applied(longer.model, methods):
            wanted = _generated(longer, inputs)
    else:
        wanted = _generated(longer, inputs)
    assert told[-1].text == wanted
    assert (told[-1].tokens, told[-1].done) == (12, True)
    assert not any(answer.done for answer in told[:-1])
    assert all(one.text in other.text for one, other in itertools.pairwise(told[:-1]))
    assert len(told) > 3, "it came at once"
    assert told[-1].ttft_ms > 0
    assert told[-1].tokens_per_second > 0
    assert (told[-1].report is not None) == pruned


def test_the_model_is_left_without_methods(llava, question, chain):
    inputs = question.inputs(llava, 4)
    list(stream_answer(llava, inputs, chain.methods, 4, threading.Event()))
    with pytest.raises(ValueError, match="no method is applied"):
        vtprune.report(llava.model)


def test_a_stop_ends_it_with_the_next_token(longer, question):
    stop = threading.Event()
    told = []
    for answer in stream_answer(longer, question.inputs(longer, 12), [], 12, stop):
        told.append(answer)
        stop.set()
    assert told[-1].done
    assert told[-1].tokens < 12


def test_who_stops_listening_stops_the_model(longer, question):
    before = threading.active_count()
    answers = stream_answer(longer, question.inputs(longer, 12), [], 12, threading.Event())
    next(answers)
    answers.close()
    assert threading.active_count() == before, "its thread still runs"


def test_an_error_of_the_model_comes_out(llava, question, monkeypatch):
    def fail(**settings):
        raise RuntimeError("no more memory")

    monkeypatch.setattr(llava.model, "generate", fail)
    with pytest.raises(RuntimeError, match="no more memory"):
        list(stream_answer(llava, question.inputs(llava, 4), [], 4, threading.Event()))


def test_the_rate_of_decoding_leaves_out_the_first_token():
    assert Answer("", 5, 100.0, 400.0).tokens_per_second == 10
    assert Answer("", 1, 100.0, 0.0).tokens_per_second is None


def test_measuring(llava, question, chain):
    times = measure(llava, question.inputs(llava, 17), chain.methods, threading.Event())
    assert times is not None
    for one in times:
        assert one.ttft_ms > 0
        assert one.tokens_per_second > 0
        assert one.rounds > 1


def test_measuring_that_is_stopped_first(llava, question, chain):
    stop = threading.Event()
    stop.set()
    assert measure(llava, question.inputs(llava, 17), chain.methods, stop) is None
