"""Suites that are drawn on the fly from seeds that no training has seen: `scenes` (pictures) and `clips` (videos)."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from vtprune.evals.clip_suite import clip_frames, questions_about_clips
from vtprune.evals.clips import make_clip
from vtprune.evals.data.sample import Medium, QuestionSet, Sample
from vtprune.evals.suite import scene_picture, scene_questions
from vtprune.videos import Video

SUITES = ("scenes", "clips")
DEFAULT_LIMIT = 300
_FPS = 24.0  # what processors assume if nobody tells, and what the tiny models were trained with


def read_suite(name: str, *, limit: int | None = None, seed: int = 0) -> QuestionSet:
    """Questions of a suite, all kinds equally often.

    Args:
        name: "scenes" or "clips".
        limit: How many; 300 by default.
        seed: Which test set; those of different seeds share no picture.

    Raises:
        ValueError: There is no such suite, or `limit` or `seed` is out of range.
    """
    if name not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {name!r}.")
    count = DEFAULT_LIMIT if limit is None else limit
    samples = _clips(count, seed) if name == "clips" else _scenes(count, seed)
    return QuestionSet(name, samples, "exact_match", {"suite": name, "seed": seed, "limit": count})


def _scenes(count: int, seed: int) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            f"{one.seed}-{one.question.kind}",
            one.question.text,
            (Medium(f"scene {one.seed}", "image", functools.partial(_scene, one.seed)),),
            (one.question.answer,),
            one.question.kind,
        )
        for one in scene_questions(count, seed)
    )


def _clips(count: int, seed: int) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            f"{one.seed}-{one.question.kind}",
            one.question.text,
            (Medium(f"clip {one.seed}", "video", functools.partial(_clip, one.seed), make_clip(one.seed).frames),),
            (one.question.answer,),
            one.question.kind,
        )
        for one in questions_about_clips(count, seed)
    )


def _scene(seed: int) -> Image.Image:
    return scene_picture(seed)


def _clip(seed: int) -> Video:
    frames = np.array(clip_frames(seed))  # the cached one may not be written to
    count = len(frames)
    times = tuple(number / _FPS for number in range(count))
    return Video(frames, tuple(range(count)), times, _FPS, count, count / _FPS)
