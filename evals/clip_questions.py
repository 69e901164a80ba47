"""Questions about a clip: four kinds, three wordings each, every answer a word or two that follows from the clip."""

from __future__ import annotations

import numpy as np

from vtprune.evals.clips import Clip, Track
from vtprune.evals.questions import Question

CLIP_TEMPLATES: dict[str, tuple[str, str, str]] = {
    "direction": (
        "In which direction does the {name} move?",
        "Which way does the {name} go?",
        "In what direction is the {name} moving?",
    ),
    "order": (
        "Which object appears {when}?",
        "Which object comes into view {when}?",
        "What is the {when} object that appears?",
    ),
    "needle": ("Which character is shown?", "Which character appears for a moment?", "Read the character."),
    "appear": ("How many objects appear?", "How many different objects are shown?", "Count the objects."),
}
"""The wordings of every kind of question."""

CLIP_KINDS: tuple[str, ...] = tuple(CLIP_TEMPLATES)

_APART = 2


def ask_clip(clip: Clip, rng: np.random.Generator, kind: str) -> Question | None:
    """Ask one question about a clip.

    Args:
        clip: The clip.
        rng: Where the wording and the object asked about are drawn from.
        kind: One of `CLIP_KINDS`.

    Returns:
        The question, or None if the clip has nothing that can be asked about without ambiguity in this way.

    Raises:
        ValueError: If `kind` is not one of `CLIP_KINDS`.
    """
    if kind not in CLIP_TEMPLATES:
        raise ValueError(f"kind must be one of {', '.join(CLIP_KINDS)}, got {kind!r}")
    template = CLIP_TEMPLATES[kind][rng.integers(3)]
    if kind == "needle":
        return Question(kind, template, clip.needle.character) if clip.needle is not None else None
    if kind == "direction":
        moving = [track for track in clip.tracks if track.direction is not None]
        if not moving:
            return None
        track = moving[rng.integers(len(moving))]
        return Question(kind, template.format(name=track.name), str(track.direction))
    # A card appears, too, and whether it is one of the objects is a matter of opinion.
    if clip.needle is not None and clip.needle.card is not None:
        return None
    if kind == "appear":
        return Question(kind, template, str(len(clip.tracks)))
    return _ask_order(clip.tracks, rng, template)


def _ask_order(tracks: tuple[Track, ...], rng: np.random.Generator, template: str) -> Question | None:
    """Which object is the first or the last one, if it is so by two frames or more."""
    if len(tracks) < 2:
        return None
    ranked = sorted(tracks, key=lambda track: track.first)
    found = []
    if ranked[1].first - ranked[0].first >= _APART:
        found.append(("first", ranked[0]))
    if ranked[-1].first - ranked[-2].first >= _APART:
        found.append(("last", ranked[-1]))
    if not found:
        return None
    when, track = found[rng.integers(len(found))]
    return Question("order", template.format(when=when), track.name)
