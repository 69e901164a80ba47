"""What all tabs of the demo share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from vtprune.demo.work.models import Models


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a visitor may ask for.

    Args:
        upload_mb: Size of a picture or a clip, in megabytes.
        upload_minutes: Uploads are deleted after so many minutes.
        prompt: Letters of a question.
        new_tokens: Tokens of an answer.
        frames: Frames that are taken of a clip.
        questions: Of a quick evaluation.
        at_once: Requests that are worked on at once; the others wait in a queue.
        waiting: Requests that may wait.
    """

    upload_mb: int = 64
    upload_minutes: float = 30
    prompt: int = 2000
    new_tokens: int = 128
    frames: int = 32
    questions: int = 100
    at_once: int = 4
    waiting: int = 64


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the demo was started with.

    Args:
        models: Its models.
        scratch: Folder of its own for uploads and for what it makes; deleted in the end.
        results: Folders of finished `vtprune eval` runs, or folders that hold such.
        loading: What else than their names the models were loaded with, by argument of `vtprune.models.load_model`.
        limits: How much a visitor may ask for.
    """

    models: Models
    scratch: Path
    results: tuple[Path, ...] = ()
    loading: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)
    limits: Limits = Limits()
