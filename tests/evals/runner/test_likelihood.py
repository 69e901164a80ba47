"""Choices by likelihood: against whole sequences in one pass, and with methods."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

import vtprune
from tests.processors import VIDEO_PROCESSORS
from vtprune.evals.runner.configurations import plan
from vtprune.evals.runner.folder import read_records
from vtprune.evals.runner.likelihood import likeliest
from vtprune.inputs import Ask, continuation, make_batch
from vtprune.models import Loaded, load_model

CHOICES = [("red", "light blue", "top left"), ("yes", "no"), ("3", "circle", "red", "K")]


@pytest.fixture(scope="module", params=["tiny-llava", "tiny-qwen2.5-vl", "tiny-internvl"])
def shipped(request):
    return load_model(request.param, device="cpu")


@pytest.fixture(scope="module")
def asks(scenes):
    return [Ask(one.question, [one.media[0].load()]) for one in scenes.samples[4:7]]


def slowly(loaded, ask, choice):
    """Log-likelihood of an answer from the logits of prompt and answer in one piece."""
    inputs = make_batch(loaded, [ask])
    answer = torch.tensor([continuation(loaded, ask, choice)])
    whole = {**inputs, "input_ids": torch.cat((inputs["input_ids"], answer), 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "mm_token_type_ids" in inputs:
        added = torch.zeros_like(answer)
        whole["mm_token_type_ids"] = torch.cat((inputs["mm_token_type_ids"], added), 1)
    with torch.inference_mode():
        logits = loaded.model(**whole).logits[0, -answer.shape[1] - 1 : -1].float().log_softmax(-1)
    return logits.gather(1, answer.T).sum().item()


def test_against_one_pass(shipped, asks):
    found = likeliest(shipped, make_batch(shipped, asks), asks, CHOICES)
    for ask, own, values, text in zip(asks, CHOICES, found.likelihoods, found.texts, strict=True):
        expected = [slowly(shipped, ask, choice) for choice in own]
        assert values == pytest.approx(expected, abs=2e-3)
        assert text == own[expected.index(max(expected))]


@pytest.mark.parametrize("method", ["divprune:keep=0.2", "fastv:layer=2,keep=0.3+snapkv:keep=0.3", "zipcache:keep=0.3"])
def test_every_choice_is_read_behind_the_same_prompt(shipped, asks, method):
    """Choices do not see one another, and a batch is its rows."""
    with vtprune.applied(shipped.model, method):
        together = likeliest(shipped, make_batch(shipped, asks), asks, CHOICES).likelihoods
        for row, (ask, own) in enumerate(zip(asks, CHOICES, strict=True)):
            inputs = make_batch(shipped, [ask])
            for place, choice in enumerate(own):
                alone = likeliest(shipped, copy.deepcopy(inputs), [ask], [[choice]]).likelihoods
                assert together[row][place] == pytest.approx(alone[0][0], abs=2e-3)


def test_a_template_that_does_not_go_on_is_refused(loaded, asks):
    processor = VIDEO_PROCESSORS["qwen2_vl"]()  # its template forgets the end of the prompt
    with pytest.raises(ValueError, match="does not continue its prompt"):
        continuation(Loaded("forgetful", loaded.model, processor), asks[0], "red")


def test_a_run(run, scenes, tmp_path):
    samples = [
        dataclasses.replace(one, choices=tuple(dict.fromkeys((*one.answers, "red", "blue")))) for one in scenes.samples
    ]
    questions = dataclasses.replace(scenes, samples=tuple(samples), source={"choices": True})
    configurations = plan(["divprune"], [0.3])
    summary = run(tmp_path, questions=questions, configurations=configurations, metric="likelihood")
    for record in read_records(tmp_path / "questions.jsonl"):
        choices = samples[record.index].choices
        assert record.answer == choices[record.likelihoods.index(max(record.likelihoods))]
        assert record.score == float(record.answer in record.answers)
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["metric"] == "likelihood"
    assert summary["configurations"][1]["n"] == 11


def test_choices_are_needed(run, tmp_path):
    with pytest.raises(ValueError, match="choices"):
        run(tmp_path / "new", metric="likelihood")
    assert not (tmp_path / "new").exists()
