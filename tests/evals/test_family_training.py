"""The training of the models that take clips: it stops and goes on as if it had never stopped."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.evals.small import small_family
from vtprune.evals import family_training
from vtprune.evals.clips import DIRECTIONS, make_clip
from vtprune.evals.family import FamilyStudent
from vtprune.evals.family_phases import FamilyPhase
from vtprune.evals.family_training import draw, family_accuracy, family_loss
from vtprune.evals.patch_targets import CENTRE, CHARACTER, COLOUR, DIRECTION, RANK, SHAPE, clip_targets, object_targets
from vtprune.evals.scenes import CHARACTERS, COLOURS, SHAPES, make_scene, patch_truth
from vtprune.evals.train_family import RECIPES, train_family

SECOND = 1 / 60
BASE = dict(pictures=1, learning_rate=1e-2, warmup=1)
PHASES = (
    FamilyPhase("tower", 2 * SECOND, questions=0, **BASE),
    FamilyPhase("clips", 2 * SECOND, clips=1.0, clips_per_step=1, goes_on=True, **BASE),
    FamilyPhase("both", 2 * SECOND, clips=0.5, clips_per_step=1, tower_factor=0.5, **BASE),
)
NAMES = tuple(RECIPES)


@pytest.fixture(autouse=True)
def no_tests(monkeypatch):
    monkeypatch.setattr(family_training, "family_accuracy", lambda *_, **__: {"mean": 0.0})


def run(name, out, **options):
    """Train with a clock by which every step takes a second."""
    clock = itertools.count(0.0).__next__
    return train_family(name, out, phases=PHASES, model=small_family(name), clock=clock, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_as_an_unstopped_one(name, tmp_path):
    whole = run(name, tmp_path / "whole")
    for stop in (1, 2):
        assert run(name, tmp_path / "parts", resume=True, steps=stop) is None
    parts = run(name, tmp_path / "parts", resume=True)
    expected, found = (AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in (whole, parts))
    start = small_family(name).state_dict()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    moved = [key for key, value in expected.items() if not torch.equal(value, start[key])]
    assert any("language_model" in key for key in moved)
    assert any("visual" in key or "vision_tower" in key for key in moved)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["tower", "clips", "both"]
    with pytest.raises(ValueError, match="resume"):
        run(name, tmp_path / "whole")


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_clips_take_turns(name):
    family = RECIPES[name][0]
    student = FamilyStudent(family, small_family(name))
    kinds = set()
    for step in range(12):
        batch = draw(family, PHASES[2], step, step, np.random.default_rng(step))
        kinds.add(batch.clips)
    assert kinds == {True, False}
    loss, watched = family_loss(student(batch), batch, PHASES[2])
    assert loss > watched > 0
    found = family_accuracy(student, family, torch.device("cpu"), 1, 1)
    assert {"mean", "clips", "count", "needle"} <= set(found)
    assert all(0 <= value <= 1 for value in found.values())


def test_recipes_are_phases_of_known_models():
    for family, phases in RECIPES.values():
        assert phases[0].questions == 0
        assert phases[-1].clips > 0
        assert family.first_seed + 10**7 < 2**40
    with pytest.raises(ValueError, match="name must be one of"):
        train_family("tiny-blip", None)
    for bad in (dict(clips=1.5), dict(clips_per_step=0), dict(heads=(1.0, 2.0))):
        with pytest.raises(ValueError, match="must be"):
            FamilyPhase("x", 1, **BASE, **bad)


def test_targets_agree_with_the_scene():
    scene = make_scene(11)
    targets, owner = object_targets(scene.objects, 16, 16)
    truth = patch_truth(scene, 16)
    assert (owner == truth.owner).all()
    assert (targets.words[:, CENTRE] == truth.centre).all()
    for rows, columns in ((16, 16), (12, 20)):
        targets, owner = object_targets(scene.objects, rows, columns)
        for number, obj in enumerate(scene.objects):
            patch = int(obj.y * rows / 224) * columns + int(obj.x * columns / 224)
            words, place = targets.words[patch], targets.place[patch]
            assert owner[patch] == number
            assert list(COLOURS)[words[COLOUR] - 1] == obj.colour
            assert SHAPES[words[SHAPE] - 1] == obj.shape
            assert (CHARACTERS[words[CHARACTER] - 2] if words[CHARACTER] > 1 else None) == obj.character
            assert place[:2] == pytest.approx([obj.x / 112 - 1, obj.y / 112 - 1], abs=1e-6)
            across = (patch % columns + 0.5 + 4 * place[2]) * 224 / columns
            assert across == pytest.approx(obj.x, abs=1e-3)


def test_clip_targets_agree_with_the_clip():
    clip = next(c for c in map(make_clip, range(99)) if any(t.direction for t in c.tracks) and len(c.tracks) > 1)
    for together in (1, 2):
        targets = clip_targets(clip, together)
        assert targets.words.shape[:2] == (-(-clip.frames // together), 64)
        for place, track in enumerate(sorted(clip.tracks, key=lambda track: track.first)):
            step = (track.end - 1) // together
            obj = track.at(min(track.end - 1, step * together + together - 1))
            words = targets.words[step, int(obj.y // 28) * 8 + int(obj.x // 28)]
            assert words[RANK] == place
            if track.end - track.first > 3:
                assert words[DIRECTION] == (1 + list(DIRECTIONS).index(track.direction) if track.direction else 0)
