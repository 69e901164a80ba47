"""Small samples of public benchmarks in the layouts in which they are published, and what is to be read from them.

The columns are those of the repositories' data set cards, also where the readers do not need them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as Pillow

from vtprune.evals.clips import write_clip

SHORT = "\nAnswer the question using a single word or phrase."

TEXT, LONG, INT32, INT8 = Value("string"), Value("int64"), Value("int32"), Value("int8")
TEXTS = Sequence(TEXT)
IMAGE = Image()


def picture(number: int) -> Pillow.Image:
    """A picture that tells its number by its colour."""
    return Pillow.new("RGB", (8, 6), colour(number))


def colour(number: int) -> tuple[int, int, int]:
    return 20 + 40 * number, 100, 200 - 30 * number


@dataclasses.dataclass(frozen=True)
class Published:
    """A sample.

    Args:
        tables: Features and rows by file.
        expected: What is read, without media.
        pictures: Number of the picture of each question.
        videos: File of the video of each question.
        metric: The benchmark's.
    """

    tables: dict[str, tuple[Features | None, list[dict[str, Any]]]]
    expected: list[dict[str, Any]]
    metric: str
    pictures: tuple[int, ...] = ()
    videos: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write it all."""
        for file, (features, rows) in self.tables.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if features is None:
                path.write_text(json.dumps(rows))
            else:
                full = [{column: row.get(column) for column in features} for row in rows]
                Dataset.from_list(full, features).to_parquet(path)
        for number, file in enumerate(dict.fromkeys(self.videos)):
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(np.full((4, 32, 32, 3), 60 * number, np.uint8), path)
        return folder


def asked(id: str, question: str, *answers: str, kind: str = "", group: str = "", choices: tuple = ()) -> dict:
    return dict(id=id, question=question, answers=answers, kind=kind, group=group, choices=tuple(choices))
