"""A finished run, read from its folder."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtprune.evals.runner.configurations import UNPRUNED
from vtprune.evals.runner.folder import CONFIG, FORMAT, PICTURES, QUESTIONS, SUMMARY
from vtprune.evals.runner.records import Record

__all__ = ["UNPRUNED", "Run", "read_run"]

GRADED = ("anls", "token_f1", "vqa_accuracy")
"""Metrics that know more than right and wrong."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder holds.

    Args:
        folder: Where it is.
        summary: Content of `summary.json`.
        config: Content of `config.json`.
    """

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]

    @property
    def configurations(self) -> list[dict[str, Any]]:
        """The unpruned model first."""
        found: list[dict[str, Any]] = self.summary["configurations"]
        return found

    @property
    def date(self) -> str:
        """When it was started, in UTC."""
        started = datetime.datetime.fromisoformat(self.config["started"])
        return f"{started.day} {started:%B %Y}"

    def picture(self, record: Record) -> Path | None:
        """The overlay of a question; None if none was drawn."""
        return None if record.picture is None else self.folder / PICTURES / record.picture

    @property
    def judged(self) -> bool:
        """Whether right answers are known; if not, quality is agreement with the unpruned model."""
        return self.configurations[0]["accuracy"] is not None

    @property
    def right_or_wrong(self) -> bool:
        """Whether an answer is either right or wrong, so that accuracy is a share of questions."""
        return self.summary["metric"] not in GRADED

    @property
    def quality(self) -> str:
        """What quality is, in words."""
        if not self.judged:
            return "same answer as unpruned"
        return "right answers" if self.right_or_wrong else self.summary["metric"].replace("_", " ")

    def questions(self) -> Iterator[dict[str, Record]]:
        """The questions in order: of each, what became of it under every configuration, by its name.

        Raises:
            ValueError: A line of `questions.jsonl` cannot be read, or they are not in order.
        """
        last = -1
        for index, records in itertools.groupby(self._records(), key=lambda record: record.index):
            if index <= last:
                raise ValueError(f"{self.folder / QUESTIONS} is not in order: question {index} is behind {last}.")
            last = index
            yield {record.configuration: record for record in records}

    def _records(self) -> Iterator[Record]:
        path = self.folder / QUESTIONS
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield Record.from_dict(json.loads(line))
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"{path}, line {number}, is no record of a question: {error}.") from None


def read_run(folder: Path) -> Run:
    """Read a run's folder; the questions are read when they are asked for.

    Raises:
        ValueError: It is not the folder of a run, the run is not finished, or another version wrote it.
    """
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder; give one that `vtprune eval` wrote.")
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{str(folder)!r} is not the folder of a run (no config.json); give one that `vtprune eval` wrote."
        )
    if not (folder / SUMMARY).is_file():
        raise ValueError(
            f"the run in {str(folder)!r} is not finished (no summary.json): give the same `vtprune eval` command once "
            "more, it goes on where it stopped."
        )
    config, summary = (_document(folder / name) for name in (CONFIG, SUMMARY))
    if summary.get("format") != FORMAT:
        raise ValueError(
            f"{folder / SUMMARY} has format {summary.get('format')!r}, and this version of vtprune reads format "
            f"{FORMAT}; use the version that wrote it, or run the evaluation again."
        )
    return Run(folder, summary, config)


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(found).__name__}.")
    return found
