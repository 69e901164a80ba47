"""One question about pictures or videos, with what is known about its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from PIL import Image

from vtprune.videos import Video


@dataclasses.dataclass(frozen=True)
class Medium:
    """A picture or a video that a question is about, read when it is needed.

    Args:
        name: What it is called in errors and reports: a file's path as the user wrote it, or "scene 123".
        kind: "image" or "video".
        load: Reads it: a `PIL.Image.Image` in RGB, or a `vtprune.videos.Video`. May raise OSError, ValueError or
            ImportError.
        frames: How many frames a video has, where that is known without reading it; batches are made of videos with
            equal numbers.
    """

    name: str
    kind: Literal["image", "video"]
    load: Callable[[], Image.Image | Video] = dataclasses.field(compare=False, repr=False)
    frames: int | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """A question.

    Args:
        id: What it is called; unique in its set and the same from run to run.
        question: As it is asked, without `choices`.
        media: What it is about, in the order in which it is shown; at least one.
        answers: Right answers, any of which counts, or the answers of all annotators (VQA accuracy); empty if unknown.
            With `choices`: the right one, word for word, or several.
        kind: What results are broken down by; "" if there is nothing to break down.
        choices: Options, for multiple choice.
        group: Questions of one group are drawn together by the bootstrap, being about the same picture; "" stands for
            the names of `media`.
        extra: What a metric needs beside this.
    """

    id: str
    question: str
    media: tuple[Medium, ...]
    answers: tuple[str, ...] = ()
    kind: str = ""
    choices: tuple[str, ...] = ()
    group: str = ""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def about(self) -> str:
        """The group, or what is shown."""
        return self.group or " ".join(medium.name for medium in self.media)


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """Questions that are asked together.

    Args:
        name: A suite, a benchmark, or the file's stem.
        samples: The questions.
        metric: Name of the metric that suits them, see `vtprune.evals.metrics`.
        source: What the questions depend on, as JSON values (suite and seed; file and digest); two runs with the same
            source ask the same questions.
        malformed: What could not be read and was left out by the user's wish, a line each.
    """

    name: str
    samples: tuple[Sample, ...]
    metric: str
    source: dict[str, Any]
    malformed: tuple[str, ...] = ()
