"""What a benchmark is: tables of a repository, and how a row of them becomes a question."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Field = str | Callable[[Row], Any]
"""The name of a column, or a function of the row."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A table: one split of one configuration.

    Args:
        files: Pattern of its files, from the repository's root.
        config: Name of the configuration on the Hub.
        split: Name of the split on the Hub.
        adds: Values that every row gets as further columns.
    """

    files: str
    config: str = "default"
    split: str = "test"
    adds: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures in a column of the questions' table.

    Args:
        column: Its name.
    """

    column: str = "image"


@dataclasses.dataclass(frozen=True)
class PictureTable:
    """Pictures in a table of their own.

    Args:
        part: The table.
        by: Column of the questions' table that names the picture.
        key: Column of the pictures' table with that name.
        column: Column with the picture.
    """

    part: Part
    by: str
    key: str = "id"
    column: str = "image"


@dataclasses.dataclass(frozen=True)
class VideoFiles:
    """Videos that lie as files somewhere in the benchmark's folder.

    Args:
        path: The end of a video's path: its file name, with the folders that are needed to tell it from others.
    """

    path: Field


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A public benchmark in the layout in which a repository on the Hub publishes it.

    Args:
        name: As the command line takes it, and the folder of its files.
        title: As papers call it, with the split.
        about: What is asked.
        paper: Its arXiv id.
        repository: On the Hub.
        questions: How many there are, as published.
        metric: Name of the metric that papers report.
        parts: The tables with the questions; their rows are asked in this order.
        columns: What a table must have beside pictures.
        question: The text, as LLaVA-type models are asked.
        answers: A right answer, or a list of them.
        media: What is shown.
        id: Of the question; what comes again gets "#2", "#3" ... None: the row's number, behind the table's
            configuration if there are several tables.
        kind: What results are broken down by.
        by: What `kind` is.
        choices: Options, without letters.
        group: The picture or video, where questions share one.
        revision: Branch of the repository.
        formerly: The repository's former name, under which its files may lie in the Hub's cache.
    """

    name: str
    title: str
    about: str
    paper: str
    repository: str
    questions: int
    metric: str
    parts: tuple[Part, ...]
    columns: tuple[str, ...]
    question: Field
    answers: Field
    media: Pictures | PictureTable | VideoFiles
    id: Field | None = None
    kind: Field | None = None
    by: str = ""
    choices: Field | None = None
    group: Field | None = None
    revision: str = "main"
    formerly: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Patterns of all tables."""
        pictures = (self.media.part.files,) if isinstance(self.media, PictureTable) else ()
        return tuple(part.files for part in self.parts) + pictures


def value(field: Field | None, row: Row) -> Any:
    """What a field says of a row; None without a field."""
    if field is None:
        return None
    return row[field] if isinstance(field, str) else field(row)
