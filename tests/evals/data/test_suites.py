"""The suites as question sets: what the tests of the tiny models ask, and the same inputs."""

from __future__ import annotations

import pytest

from vtprune.evals.clip_suite import questions_about_clips
from vtprune.evals.data.suites import read_suite
from vtprune.evals.suite import prompt_inputs, scene_questions, seen
from vtprune.inputs import Ask, make_batch
from vtprune.models import load_model


@pytest.mark.parametrize(("name", "drawn"), [("scenes", scene_questions), ("clips", questions_about_clips)])
def test_the_same_questions(name, drawn):
    found, expected = read_suite(name, limit=14, seed=3), drawn(14, 3)
    assert [(one.question, one.answers, one.kind) for one in found.samples] == [
        (one.question.text, (one.question.answer,), one.question.kind) for one in expected
    ]
    assert len({one.id for one in found.samples}) == 14
    assert len({one.about for one in found.samples}) == len({one.seed for one in expected})
    assert found.source == {"suite": name, "seed": 3, "limit": 14}


@pytest.mark.parametrize(
    ("model", "name", "drawn"),
    [("tiny-llava", "scenes", scene_questions), ("tiny-qwen2.5-vl", "clips", questions_about_clips)],
)
def test_the_same_inputs(model, name, drawn):
    """What a model gets is what it got when it was trained and tested, the clips' rate of frames included."""
    loaded = load_model(model, device="cpu")
    sample, expected = read_suite(name, limit=1).samples[0], drawn(1)[0]
    shown = sample.media[0].load()
    ask = Ask(sample.question, *(([], [shown]) if name == "clips" else ([shown],)))
    mine = make_batch(loaded, [ask])
    old = prompt_inputs(loaded.model, loaded.processor, [seen(expected)], [expected.question.text])
    assert set(mine) == set(old)
    for key, value in old.items():
        assert mine[key].equal(value.to(mine[key].dtype)), key


def test_refusals():
    with pytest.raises(ValueError, match="suite must be one of scenes, clips, got 'gqa'"):
        read_suite("gqa")
    with pytest.raises(ValueError, match="n must be >= 1"):
        read_suite("scenes", limit=0)
