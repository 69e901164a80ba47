"""Answers agree with the scene, found here in another way: from the words of the question alone."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from vtprune.evals.questions import KINDS, TEMPLATES, ask
from vtprune.evals.scenes import CHARACTERS, COLOURS, QUADRANTS, SHAPES, Scene, make_scene

SCENES = range(300)


def words(text: str) -> list[str]:
    """The words of a question, singular, in order."""
    plain = [word.strip(".,?").lower() for word in text.split()]
    singular = {f"{shape}s": shape for shape in SHAPES} | {"crosses": "cross", "objects": "object"}
    return [singular.get(word, word) for word in plain]


def answer(scene: Scene, kind: str, text: str) -> str:
    """What is right, by looking at every object that has all the named properties."""
    named = words(text)
    colours, shapes = [w for w in named if w in COLOURS], [w for w in named if w in SHAPES]
    meant = [o for o in scene.objects if {o.colour} >= set(colours) and {o.shape} >= set(shapes)]
    if kind == "count":
        return str(len(meant))
    if kind == "exists":
        return "yes" if meant else "no"
    assert len(meant) == 1, (text, scene)
    obj = meant[0]
    if kind == "where":
        corners = [(obj.x - obj.radius, obj.y - obj.radius), (obj.x + obj.radius, obj.y + obj.radius)]
        quarters = {("bottom" if y > 112 else "top") + (" right" if x > 112 else " left") for x, y in corners}
        assert len(quarters) == 1, (text, scene)
        return quarters.pop()
    return str({"colour": obj.colour, "shape": obj.shape, "read": obj.character}[kind])


@pytest.fixture(scope="module")
def asked():
    found = []
    for seed, kind in itertools.product(SCENES, KINDS):
        scene = make_scene(seed)
        question = ask(scene, np.random.default_rng((seed, KINDS.index(kind))), kind)
        if question is not None:
            found.append((scene, question))
    return found


def test_answers_are_right(asked):
    assert len(asked) > 1000
    for scene, question in asked:
        assert question.answer == answer(scene, question.kind, question.text), (scene, question)


def test_all_wordings_occur(asked):
    starts = {t[: t.index("{")] for templates in TEMPLATES.values() for t in templates}
    assert all(any(q.text.startswith(start) for _, q in asked) for start in starts)


def test_no_answer_can_be_guessed(asked):
    counts = {kind: Counter(q.answer for _, q in asked if q.kind == kind) for kind in KINDS}
    assert set(counts["colour"]) == set(COLOURS)
    assert set(counts["shape"]) == set(SHAPES)
    assert set(counts["where"]) == set(QUADRANTS)
    assert set(counts["read"]) == set(CHARACTERS)
    limits = {"colour": 0.25, "shape": 0.3, "where": 0.4, "count": 0.4, "exists": 0.6, "read": 0.15}
    for kind, limit in limits.items():
        most, times = counts[kind].most_common(1)[0]
        assert times / counts[kind].total() < limit, (kind, most)


def test_the_same_draw_asks_the_same():
    scene = make_scene(3)
    for kind in KINDS:
        assert ask(scene, np.random.default_rng(1), kind) == ask(scene, np.random.default_rng(1), kind)


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"kind must be one of colour, .* got 'size'"):
        ask(make_scene(0), np.random.default_rng(0), "size")
