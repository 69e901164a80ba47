"""Answers agree with the clip, found here in another way: from what is there in each frame."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from vtprune.evals.clip_questions import CLIP_KINDS, CLIP_TEMPLATES, ask_clip
from vtprune.evals.clip_suite import clip_frames, questions_about_clips
from vtprune.evals.clips import DIRECTIONS, Clip, draw_clip, make_clip
from vtprune.evals.scenes import CHARACTERS, COLOURS, SHAPES, TEST_SEED_START

CLIPS = range(400)
BLIND_LIMIT = 0.40


def objects_by_frame(clip: Clip) -> list[dict[str, tuple[float, float]]]:
    """Where the objects are, by name, frame by frame."""
    shown = [[track.at(frame) for track in clip.tracks] for frame in range(clip.frames)]
    return [{f"{o.colour} {o.shape}": (o.x, o.y) for o in objects if o} for objects in shown]


def answer(clip: Clip, kind: str, text: str) -> str:
    """What is right, by watching the clip from its first to its last frame."""
    frames = objects_by_frame(clip)
    if kind == "needle":
        return clip.needle.character
    firsts = {name: next(n for n, shown in enumerate(frames) if name in shown) for name in set().union(*frames)}
    if kind == "appear":
        return str(len(firsts))
    if kind == "order":
        wanted = (min if "first" in text else max)(firsts.values())
        named = [name for name, first in firsts.items() if first == wanted]
        assert len(named) == 1
        assert all(abs(first - wanted) >= 2 for name, first in firsts.items() if name != named[0])
        return named[0]
    (name,) = [name for name in firsts if name in text]
    path = [shown[name] for shown in frames if name in shown]
    across, down = path[-1][0] - path[0][0], path[-1][1] - path[0][1]
    return ("right" if across > 0 else "left") if abs(across) > abs(down) else ("down" if down > 0 else "up")


@pytest.fixture(scope="module")
def asked():
    found = []
    for seed, kind in itertools.product(CLIPS, CLIP_KINDS):
        clip = make_clip(seed)
        question = ask_clip(clip, np.random.default_rng((seed, CLIP_KINDS.index(kind))), kind)
        if question is not None:
            found.append((clip, question))
    return found


def test_answers_are_right(asked):
    assert len(asked) > 900
    for clip, question in asked:
        assert question.answer == answer(clip, question.kind, question.text), (clip, question)
        assert 1 <= len(question.answer.split()) <= 2


def test_a_card_is_not_counted(asked):
    assert all(q.kind in ("needle", "direction") for clip, q in asked if clip.needle and clip.needle.card)


def test_all_wordings_occur(asked):
    starts = {t.split("{")[0] for templates in CLIP_TEMPLATES.values() for t in templates}
    assert all(any(q.text.startswith(start) for _, q in asked) for start in starts)


def test_answers_are_balanced(asked):
    counts = {kind: Counter(q.answer for _, q in asked if q.kind == kind) for kind in CLIP_KINDS}
    assert set(counts["direction"]) == set(DIRECTIONS)
    assert set(counts["appear"]) == set("1234")
    assert set(counts["needle"]) == set(CHARACTERS)
    assert {word for pair in counts["order"] for word in pair.split()} == {*COLOURS, *SHAPES}
    limits = {"direction": 0.35, "order": 0.1, "needle": 0.15, "appear": 0.35}
    for kind, limit in limits.items():
        most, times = counts[kind].most_common(1)[0]
        assert times / counts[kind].total() < limit, (kind, most)


def test_who_does_not_look_is_mostly_wrong():
    learnt, test = questions_about_clips(1200, seed=1), questions_about_clips(400)
    for about in (lambda q: q.text, lambda q: " ".join(w for w in q.text.split() if w not in {*COLOURS, *SHAPES})):
        best: dict[str, Counter[str]] = {}
        for item in learnt:
            best.setdefault(about(item.question), Counter())[item.question.answer] += 1
        guess = {text: counts.most_common(1)[0][0] for text, counts in best.items()}
        right = [guess.get(about(item.question)) == item.question.answer for item in test]
        assert sum(right) / len(right) < BLIND_LIMIT


def test_the_same_draw_asks_the_same():
    clip = make_clip(3)
    for kind in CLIP_KINDS:
        assert ask_clip(clip, np.random.default_rng(1), kind) == ask_clip(clip, np.random.default_rng(1), kind)


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"kind must be one of direction, .* got 'colour'"):
        ask_clip(make_clip(0), np.random.default_rng(0), "colour")


def test_the_suite():
    for n in (40, 42):
        counts = Counter(item.question.kind for item in questions_about_clips(n))
        assert set(counts) == set(CLIP_KINDS)
        assert sum(counts.values()) == n
        assert max(counts.values()) - min(counts.values()) == bool(n % len(CLIP_KINDS))
    assert questions_about_clips(20) == questions_about_clips(20)
    assert {item.question.kind for item in questions_about_clips(5, kinds=["needle"])} == {"needle"}
    suites = [{item.seed for item in questions_about_clips(40, seed)} for seed in (0, 1)]
    assert suites[0].isdisjoint(suites[1])
    assert min(suites[0]) >= TEST_SEED_START + 10**9
    seed = min(suites[0])
    assert np.array_equal(clip_frames(seed), draw_clip(make_clip(seed)))
    for bad in (dict(n=0), dict(n=1, seed=-1), dict(n=1, kinds=["colour"]), dict(n=1, kinds=[])):
        with pytest.raises(ValueError, match="must be"):
            questions_about_clips(**bad)
