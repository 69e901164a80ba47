"""Draw the example pictures: python -m vtprune.evals.make_examples --model tiny-llava [--out DIR] [--count N]."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from vtprune.evals.questions import KINDS, Question, ask
from vtprune.evals.scenes import TEST_SEED_START, Scene, draw_scene, make_scene
from vtprune.evals.suite import ask_model
from vtprune.models import load_model

FOLDER = Path(__file__).parent / "examples"
SIDE = 448
_LARGEST_FILE = 150_000
_CANDIDATES = 500


def example_picture(scene: Scene) -> Image.Image:
    """A scene at 448 x 448 pixels with a palette of 64 colours, which makes for small files."""
    return draw_scene(scene, SIDE).quantize(64, dither=Image.Dither.NONE)


def example_questions(scene: Scene, seed: int) -> list[Question]:
    """One question of every kind that the scene allows."""
    rng = np.random.default_rng((seed, 7))
    asked = [ask(scene, rng, kind) for kind in KINDS]
    return [question for question in asked if question is not None]


def candidates() -> Iterator[tuple[int, Scene]]:
    """Scenes worth showing: changing backgrounds, five to seven objects, something to ask of every kind."""
    backgrounds: list[str] = []
    for seed in range(TEST_SEED_START, TEST_SEED_START + _CANDIDATES):
        scene = make_scene(seed)
        if scene.background in backgrounds[-4:] or not 5 <= len(scene.objects) <= 7:
            continue
        if len(example_questions(scene, seed)) == len(KINDS):
            backgrounds.append(scene.background)
            yield seed, scene


def make_examples(
    model: Annotated[str, typer.Option(help="Model that has to answer them: tiny-llava, a folder or a Hub id.")],
    out: Annotated[Path, typer.Option(help="Where the pictures and examples.json go.")] = FOLDER,
    count: Annotated[int, typer.Option(help="Number of pictures.")] = 6,
) -> None:
    """Save the first test pictures about which the model answers every question correctly.

    Three questions of each are written down, so that all kinds occur equally often. Examples of clips stay.
    """
    answering = load_model(model)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("scene-*.png"):
        old.unlink()
    examples: list[dict[str, str]] = []
    made = 0
    for seed, scene in candidates():
        if made == count:
            break
        name = f"scene-{made + 1}.png"
        example_picture(scene).save(out / name, optimize=True)
        with Image.open(out / name) as picture:
            questions = example_questions(scene, seed)
            pictures = [picture.convert("RGB")] * len(questions)
        answers = ask_model(answering.model, answering.processor, pictures, [question.text for question in questions])
        right = all(a == q.answer.lower() for a, q in zip(answers, questions, strict=True))
        if not right or (out / name).stat().st_size >= _LARGEST_FILE:
            (out / name).unlink()
            continue
        shown = questions[made % 2 :: 2]
        examples += [{"file": name, "question": question.text, "answer": question.answer} for question in shown]
        made += 1
    listing = out / "examples.json"
    clips = [e for e in json.loads(listing.read_text()) if e.get("video")] if listing.exists() else []
    listing.write_text(json.dumps([*examples, *clips], indent=2) + "\n")
    if made < count:
        raise ValueError(f"count must be at most {made} for this model and {_CANDIDATES} pictures, got {count}")


if __name__ == "__main__":
    typer.run(make_examples)
