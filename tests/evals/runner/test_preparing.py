"""From questions to calls: what cannot be read is told, and videos are told apart by their length."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image

from vtprune.evals.data.sample import Medium, Sample
from vtprune.evals.metrics import get_metric
from vtprune.evals.runner.batches import make_batches
from vtprune.evals.runner.preparing import ahead, alone, prepare
from vtprune.models import load_model
from vtprune.videos import Video


def clip(frames):
    pixels = np.zeros((frames, 112, 112, 3), dtype=np.uint8)
    return Video(pixels, tuple(range(frames)), tuple(map(float, range(frames))), 1.0, frames, float(frames))


def about(number, load, kind="video"):
    return Sample(str(number), "What is the colour?", (Medium(f"m{number}", kind, load),), ("red",))


@pytest.fixture(scope="module")
def shipped():
    return load_model("tiny-qwen2.5-vl", device="cpu")


def test_videos_of_different_lengths_are_different_calls(shipped):
    samples = [about(number, lambda frames=frames: clip(frames)) for number, frames in enumerate([4, 8, 4])]
    (batch,) = make_batches(samples, 8)
    prepared = prepare(shipped, samples, get_metric("exact_match"), batch)
    assert [call.indices for call in prepared.calls] == [(0, 2), (1,)]
    assert prepared.failures == {}
    assert [len(call.inputs["input_ids"]) for call in prepared.calls] == [2, 1]
    singles = alone(shipped, prepared.calls[0])
    assert [call.indices for call in singles] == [(0,), (2,)]


def test_what_cannot_be_read_is_told(shipped):
    def missing():
        raise FileNotFoundError("no such clip\nat all")

    samples = [about(0, missing, "image"), about(1, lambda: Image.new("RGB", (56, 56)), "image")]
    (batch,) = make_batches(samples, 8)
    prepared = prepare(shipped, samples, get_metric("exact_match"), batch)
    assert prepared.failures == {0: "FileNotFoundError: no such clip"}
    assert [call.indices for call in prepared.calls] == [(1,)]


@pytest.mark.parametrize("threaded", [False, True])
def test_ahead_is_map(threaded):
    here = threading.get_ident()
    found = list(ahead(lambda x: (x * x, threading.get_ident() == here), range(7), threaded))
    assert found == [(x * x, not threaded) for x in range(7)]

    def fails(x):
        raise RuntimeError(x)

    with pytest.raises(RuntimeError, match="3"):
        next(ahead(fails, [3], threaded))


def test_one_is_prepared_while_another_is_used():
    began = []

    def note(x):
        began.append(x)
        return x

    steps = ahead(note, range(9), True)
    assert next(steps) == 0
    assert began in ([0], [0, 1])
    steps.close()
    assert len(began) <= 2
