"""Scenes follow from their seeds; the seeds of training, held-out tests, examples and suites never meet."""

from __future__ import annotations

import numpy as np

from vtprune.evals.held_out import HELD_OUT_SEED_START
from vtprune.evals.make_examples import candidates
from vtprune.evals.phases import PHASES
from vtprune.evals.scenes import SIZE, TEST_SEED_START, draw_scene, make_scene, patch_truth
from vtprune.evals.suite import scene_questions
from vtprune.evals.training import FIRST_SEED, Pictures


def test_a_seed_is_a_scene():
    for seed in (0, 7, TEST_SEED_START + 3):
        one, two = make_scene(seed), make_scene(seed)
        assert one == two
        assert np.array_equal(draw_scene(one), draw_scene(two))
    assert make_scene(0) != make_scene(1)


def test_objects_lie_inside_and_apart():
    for seed in range(50):
        objects = make_scene(seed).objects
        assert objects
        for place, obj in enumerate(objects):
            assert obj.radius < min(obj.x, obj.y, SIZE - obj.x, SIZE - obj.y)
            for other in objects[:place]:
                assert max(abs(obj.x - other.x), abs(obj.y - other.y)) > obj.radius + other.radius


def test_patches_under_a_centre_belong_to_the_object():
    scene = make_scene(4)
    truth = patch_truth(scene)
    for number, obj in enumerate(scene.objects):
        assert truth.owner[int(obj.y // 14) * 16 + int(obj.x // 14)] == number
    assert truth.centre.sum() == len(scene.objects)
    assert (truth.owner == -1).sum() > 64


def test_seeds_are_disjoint():
    # A day of training sees fewer than 5 million pictures.
    training = range(FIRST_SEED, FIRST_SEED + 5_000_000)
    held_out = range(HELD_OUT_SEED_START, HELD_OUT_SEED_START + 10_000)
    examples = {seed for (seed, _), _ in zip(candidates(), range(10), strict=False)}
    suites = [{item.seed for item in scene_questions(60, seed)} for seed in (0, 1)]
    assert training.stop < TEST_SEED_START <= min(held_out.start, *examples, *suites[0])
    assert not examples & set(held_out)
    assert suites[0].isdisjoint(suites[1])
    for suite in suites:
        assert suite.isdisjoint(examples)
        assert suite.isdisjoint(held_out)
    assert next(iter(Pictures(FIRST_SEED, PHASES[0]))).picture.shape == (SIZE, SIZE, 3)
