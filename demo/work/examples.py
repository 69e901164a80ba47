"""The pictures and clips that come with the package, and questions about them."""

from __future__ import annotations

import dataclasses
import functools
import json
from importlib import resources
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture or a clip with questions.

    Args:
        file: Where it is.
        is_video: Whether it is a clip.
        questions: What may be asked about it.
    """

    file: Path
    is_video: bool
    questions: tuple[str, ...]

    @property
    def title(self) -> str:
        """What it is called."""
        return self.file.stem.replace("-", " ")


@functools.cache
def examples() -> tuple[Example, ...]:
    """All of them, in the order in which they are shipped."""
    folder = Path(str(resources.files("vtprune.evals"))) / "examples"
    found: dict[str, Example] = {}
    for one in json.loads((folder / "examples.json").read_text()):
        known = found.get(one["file"]) or Example(folder / one["file"], bool(one.get("video")), ())
        found[one["file"]] = dataclasses.replace(known, questions=(*known.questions, one["question"]))
    return tuple(found.values())
