"""The folder of a run: what was asked of it, every answer as soon as it is known, and what came of it.

`config.json` stands from the first moment. Answers are lines of `questions.jsonl`, written batch by batch; with several
processes each but the first writes a `questions-RANK.jsonl` of its own. A batch counts once all of its lines are there,
so a run that was killed at any moment goes on with whole batches. `summary.json` exists when all is done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vtprune.evals.runner.batches import Batch
from vtprune.evals.runner.records import Record
from vtprune.evals.table import write_whole

FORMAT = 1
CONFIG, QUESTIONS, SUMMARY, REPORT, PICTURES = (
    "config.json",
    "questions.jsonl",
    "summary.json",
    "report.html",
    "pictures",
)
_LOCK = ".lock"


class RunFolder:
    """A folder that holds one run, or will.

    Args:
        path: The folder.
        rank: Of this process.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path, self.rank = path, rank
        # A run that is taken batch by batch may be begun and ended by different threads.
        self._lock = FileLock(path / f"{_LOCK}-{rank}", timeout=0, thread_local=False)

    @property
    def pictures(self) -> Path:
        """Where overlays are kept."""
        return self.path / PICTURES

    @property
    def summary(self) -> dict[str, Any] | None:
        """What came of the run, once it is finished."""
        path = self.path / SUMMARY
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def check(self, settings: dict[str, Any]) -> None:
        """Whether a run with these settings can start or go on here; changes nothing.

        Raises:
            ValueError: The folder holds something else, or a run with other settings.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ValueError(f"--out {str(self.path)!r} is a file; give a folder.")
        config = self.path / CONFIG
        if not config.is_file():
            if any(not name.startswith(_LOCK) for name in os.listdir(self.path)):
                raise ValueError(f"--out {str(self.path)!r} holds other files and no run; give a new or empty folder.")
            return
        try:
            held = json.loads(config.read_text(encoding="utf-8"))
            known = held["settings"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{str(config)!r} is damaged; use --fresh to start anew.") from None
        if held.get("format") != FORMAT:
            raise ValueError(f"{str(self.path)!r} was written by another version of vtprune; use another --out.")
        differ = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
        if differ:
            said = "; ".join(f"{key}: {known.get(key)!r}, now {settings.get(key)!r}" for key in differ)
            raise ValueError(
                f"--out {str(self.path)!r} holds a run with other settings ({said}); use another --out, or --fresh to "
                "start anew."
            )

    def claim(self) -> None:
        """Keep other runs out of the folder until this process ends.

        Raises:
            ValueError: Another process works in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"another process is working in {str(self.path)!r}; wait for it, or use another --out."
            ) from None

    def release(self) -> None:
        """Let others in."""
        self._lock.release()
        (self.path / f"{_LOCK}-{self.rank}").unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what a run left; other files stay."""
        for path in (self.path / CONFIG, self.path / SUMMARY, self.path / REPORT, *self._files()):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.pictures, ignore_errors=True)

    def begin(self, config: dict[str, Any]) -> None:
        """Write down what the run is about, if that is not known yet."""
        if not (self.path / CONFIG).exists():
            write_whole(self.path / CONFIG, _pretty({"format": FORMAT, **config}))

    @property
    def config(self) -> dict[str, Any]:
        """What the run is about."""
        config: dict[str, Any] = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        return config

    def known(self, batches: Sequence[Batch], configurations: Sequence[str]) -> list[Record]:
        """The records of all whole batches, as they stand."""
        return whole_batches(self._read(), batches, configurations)

    def gather(self, batches: Sequence[Batch], configurations: Sequence[str]) -> list[Record]:
        """The records of all whole batches, in order; they are put together into `questions.jsonl`."""
        records = self.known(batches, configurations)
        files = self._files()
        if records or files:
            order = {name: place for place, name in enumerate(configurations)}
            records.sort(key=lambda record: (record.index, order[record.configuration]))
            write_whole(self.path / QUESTIONS, "".join(map(_line, records)))
            for path in files:
                if path.name != QUESTIONS:
                    path.unlink()
        return records

    def append(self, records: Iterable[Record]) -> None:
        """Add the records of a batch, on disk when this returns."""
        name = QUESTIONS if self.rank == 0 else f"questions-{self.rank}.jsonl"
        with (self.path / name).open("a", encoding="utf-8") as stream:
            stream.write("".join(map(_line, records)))
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self, summary: dict[str, Any]) -> None:
        """Write down what came of the run."""
        write_whole(self.path / SUMMARY, _pretty(summary))

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("questions*.jsonl"))

    def _read(self) -> list[Record]:
        return [record for path in self._files() for record in read_records(path)]


def read_records(path: Path) -> list[Record]:
    """The records of a `questions.jsonl`; a last line that was being written when a process ended is left out.

    Raises:
        ValueError: Another line is damaged.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            records.append(Record.from_dict(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{str(path)!r}: line {number} is damaged.") from None
    return records


def whole_batches(records: Sequence[Record], batches: Sequence[Batch], configurations: Sequence[str]) -> list[Record]:
    """The records of those batches of which every question is there under every configuration, each once."""
    wanted = {batch.number: len(batch.indices) * len(configurations) for batch in batches}
    once = {(record.index, record.configuration): record for record in records if record.batch in wanted}
    there = Counter(record.batch for record in once.values())
    return [record for record in once.values() if there[record.batch] == wanted[record.batch]]


def _line(record: Record) -> str:
    return json.dumps(record.to_dict(), ensure_ascii=False) + "\n"


def _pretty(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
