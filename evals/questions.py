"""Questions about a scene: six kinds, three wordings each, every answer a word or two that follows from the scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vtprune.evals.scenes import COLOURS, SHAPES, Scene, SceneObject

TEMPLATES: dict[str, tuple[str, str, str]] = {
    "colour": (
        "What colour is the {shape}?",
        "What is the colour of the {shape}?",
        "Which colour does the {shape} have?",
    ),
    "shape": (
        "What shape is the {colour} object?",
        "What is the shape of the {colour} object?",
        "Which shape does the {colour} object have?",
    ),
    "where": (
        "Where is the {colour} {shape}?",
        "In which quarter is the {colour} {shape}?",
        "Where can you find the {colour} {shape}?",
    ),
    "count": ("How many {things} are there?", "How many {things} can you see?", "Count the {things}."),
    "exists": (
        "Is there a {colour} {shape}?",
        "Can you see a {colour} {shape}?",
        "Does the picture show a {colour} {shape}?",
    ),
    "read": (
        "Which character is on the {colour} {shape}?",
        "What is written on the {colour} {shape}?",
        "Read the character on the {colour} {shape}.",
    ),
}
"""The wordings of every kind of question."""

KINDS: tuple[str, ...] = tuple(TEMPLATES)

_NEAR_MISSES = 0.6
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
        kind: One of `KINDS`.
        text: The question as it is asked.
        answer: The one correct answer, as the model is taught to write it ("red", "top left", "3", "yes", "K").
    """

    kind: str
    text: str
    answer: str


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def ask(scene: Scene, rng: np.random.Generator, kind: str) -> Question | None:
    """Ask one question about a scene.

    Args:
        scene: The scene.
        rng: Where the wording and the object asked about are drawn from.
        kind: One of `KINDS`.

    Returns:
        The question, or None if the scene has nothing that can be asked about without ambiguity in this way.

    Raises:
        ValueError: If `kind` is not one of `KINDS`.
    """
    if kind not in TEMPLATES:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    template = TEMPLATES[kind][rng.integers(3)]
    if kind == "exists":
        return _ask_exists(scene, rng, template)
    if kind == "count":
        return _ask_count(scene, rng, template)
    candidates = [o for o in scene.objects if _can_be_asked(scene, o, kind)]
    if not candidates:
        return None
    obj = _draw(candidates, rng)
    answer = {"colour": obj.colour, "shape": obj.shape, "where": obj.quadrant, "read": obj.character}[kind]
    return Question(kind, template.format(colour=obj.colour, shape=obj.shape), str(answer))


def _draw(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]


def _can_be_asked(scene: Scene, obj: SceneObject, kind: str) -> bool:
    """Whether the words of the question single the object out, and it has the property asked for."""
    if kind == "colour":
        return sum(o.shape == obj.shape for o in scene.objects) == 1
    if kind == "shape":
        return sum(o.colour == obj.colour for o in scene.objects) == 1
    alone = sum((o.colour, o.shape) == (obj.colour, obj.shape) for o in scene.objects) == 1
    return alone and bool(obj.quadrant if kind == "where" else obj.character)


def _ask_exists(scene: Scene, rng: np.random.Generator, template: str) -> Question:
    if rng.random() < 0.5:
        obj = _draw(scene.objects, rng)
        return Question("exists", template.format(colour=obj.colour, shape=obj.shape), "yes")
    pairs = {(o.colour, o.shape) for o in scene.objects}
    shown = dict.fromkeys(o.colour for o in scene.objects), dict.fromkeys(o.shape for o in scene.objects)
    # A colour and a shape that are both in the picture, on different objects: seeing the words' parts is not enough.
    near = [(c, s) for c in shown[0] for s in shown[1] if (c, s) not in pairs]
    if near and rng.random() < _NEAR_MISSES:
        colour, shape = _draw(near, rng)
    else:
        colour, shape = _draw([(c, s) for c in COLOURS for s in SHAPES if (c, s) not in pairs], rng)
    return Question("exists", template.format(colour=colour, shape=shape), "no")


def _ask_count(scene: Scene, rng: np.random.Generator, template: str) -> Question:
    shapes, colours = Counter(o.shape for o in scene.objects), Counter(o.colour for o in scene.objects)
    by_number: dict[int, list[str]] = {}
    for shape in SHAPES:
        by_number.setdefault(shapes[shape], []).append(plural(shape))
    for colour in COLOURS:
        by_number.setdefault(colours[colour], []).append(f"{colour} objects")
    by_number.setdefault(len(scene.objects), []).append("objects")
    # The number is drawn first, so that the small numbers, of which every scene has many, do not crowd out the others.
    number = _draw(sorted(by_number), rng)
    return Question("count", template.format(things=_draw(by_number[number], rng)), str(number))
