"""Draw the example clips: python -m vtprune.evals.make_example_clips [--out DIR] [--count N]."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vtprune.evals.clip_questions import CLIP_KINDS, ask_clip
from vtprune.evals.clips import Clip, draw_clip, make_clip, write_clip
from vtprune.evals.make_examples import FOLDER
from vtprune.evals.questions import Question
from vtprune.evals.scenes import TEST_SEED_START

_CANDIDATES = 2000


def example_questions(clip: Clip) -> list[Question]:
    """One question of every kind that the clip allows."""
    rng = np.random.default_rng((clip.seed, 7))
    asked = [ask_clip(clip, rng, kind) for kind in CLIP_KINDS]
    return [question for question in asked if question is not None]


def candidates() -> Iterator[Clip]:
    """Clips worth showing: changing backgrounds, three objects or more, a needle in one frame, all kinds to ask."""
    backgrounds: list[str] = []
    for seed in range(TEST_SEED_START, TEST_SEED_START + _CANDIDATES):
        clip = make_clip(seed)
        short = clip.needle is not None and clip.needle.end - clip.needle.first == 1
        if clip.background in backgrounds[-4:] or not short or len(clip.tracks) < 3:
            continue
        if len(example_questions(clip)) == len(CLIP_KINDS):
            backgrounds.append(clip.background)
            yield clip


def make_example_clips(
    out: Annotated[Path, typer.Option(help="Where the clips go, and examples.json is.")] = FOLDER,
    count: Annotated[int, typer.Option(help="Number of clips.")] = 2,
) -> None:
    """Save the first clips worth showing, and write their questions behind those about pictures."""
    for old in out.glob("clip-*.mp4"):
        old.unlink()
    listing = out / "examples.json"
    examples: list[dict[str, Any]] = [e for e in json.loads(listing.read_text()) if not e.get("video")]
    for number, clip in zip(range(1, count + 1), candidates(), strict=False):
        name = f"clip-{number}.mp4"
        write_clip(draw_clip(clip), out / name)
        examples += [
            {"file": name, "video": True, "question": question.text, "answer": question.answer}
            for question in example_questions(clip)
        ]
    listing.write_text(json.dumps(examples, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(make_example_clips)
