"""The test questions about clips, as `vtprune.evals.suite` has them about pictures: clips that no training has seen."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vtprune.evals.clip_questions import CLIP_KINDS, ask_clip
from vtprune.evals.clips import draw_clip, make_clip
from vtprune.evals.questions import Question
from vtprune.evals.scenes import TEST_SEED_START

_SEEDS_PER_SUITE = 10**9


@dataclass(frozen=True)
class ClipQuestion:
    """A question about the clip of a seed."""

    seed: int
    question: Question


def questions_about_clips(n: int, seed: int = 0, *, kinds: Sequence[str] = CLIP_KINDS) -> list[ClipQuestion]:
    """Questions about test clips, all kinds equally often (the first ones once more where `n` does not divide).

    At most one question of each kind is asked about a clip; those about the same clip stand together.

    Args:
        n: How many.
        seed: Which test set. Sets of different seeds share no clip, nor does any with training or the examples.
        kinds: The kinds of questions.

    Raises:
        ValueError: If `n` or `seed` is out of range or a kind is unknown.
    """
    if n < 1 or seed < 0:
        raise ValueError(f"n must be >= 1 and seed >= 0, got n={n} and seed={seed}")
    unknown = set(kinds) - set(CLIP_KINDS)
    if unknown or not kinds:
        raise ValueError(f"kinds must be some of {', '.join(CLIP_KINDS)}, got {list(kinds)}")
    wanted = {kind: n // len(kinds) + (place < n % len(kinds)) for place, kind in enumerate(kinds)}
    found: list[ClipQuestion] = []
    # The first range is that of held-out looks during training, and of the examples.
    number = TEST_SEED_START + _SEEDS_PER_SUITE * (1 + seed)
    while any(wanted.values()):
        clip, rng = make_clip(number), np.random.default_rng((number, 7))
        for kind in kinds:
            question = ask_clip(clip, rng, kind) if wanted[kind] else None
            if question is not None:
                found.append(ClipQuestion(number, question))
                wanted[kind] -= 1
        number += 1
    return found


@functools.lru_cache(maxsize=256)
def clip_frames(seed: int) -> np.ndarray:
    """The frames of a seed, (frames, 112, 112, 3), uint8; not to be written to."""
    frames = draw_clip(make_clip(seed))
    frames.setflags(write=False)
    return frames
