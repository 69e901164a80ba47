"""From a benchmark's tables to its questions."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from numbers import Integral
from pathlib import Path
from typing import Any

from vtprune.evals.data.benchmarks.base import Benchmark, Part, Pictures, Row, VideoFiles, value
from vtprune.evals.data.benchmarks.media import Show, show
from vtprune.evals.data.benchmarks.places import find
from vtprune.evals.data.benchmarks.tables import Table
from vtprune.evals.data.sample import QuestionSet, Sample
from vtprune.files import reason
from vtprune.videos import check_sampling

# What a field raises if a row is not of the form that it expects.
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError)


def read(
    benchmark: Benchmark,
    *,
    folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
) -> QuestionSet:
    """Read a benchmark; see `vtprune.evals.data.benchmarks.read_benchmark`."""
    _check(benchmark, limit, frames, fps)
    place = find(benchmark, folder)
    shown = show(benchmark, place, frames, fps)
    tables = [place.table(part) for part in benchmark.parts]
    streams = [_samples(benchmark, *pair, shown) for pair in zip(benchmark.parts, tables, strict=True)]
    # In turn, so that a limit is shared by the tables; then table by table.
    in_turn = (found for turn in itertools.zip_longest(*map(_numbered, itertools.count(), streams)) for found in turn)
    taken = list(itertools.islice((found for found in in_turn if found is not None), limit))
    samples = tuple(sample for _, _, sample in sorted(taken, key=lambda found: found[:2]))
    files = [*shown.used(), *(file for table in tables for file in table.files)]
    source: dict[str, Any] = {
        "benchmark": benchmark.name,
        "split": benchmark.parts[0].split,
        "repository": benchmark.repository,
        "revision": benchmark.revision,
        "limit": limit,
        "fingerprint": _fingerprint(files),
    }
    if isinstance(benchmark.media, VideoFiles):
        source |= {"frames": frames, "fps": fps}
    return QuestionSet(benchmark.name, samples, benchmark.metric, source)


def _check(benchmark: Benchmark, limit: int | None, frames: int | None, fps: float | None) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 1):
        raise ValueError(f"limit must be a whole number >= 1, got {limit!r}.")
    if not isinstance(benchmark.media, VideoFiles) and (frames is not None or fps is not None):
        raise ValueError(f"frames and fps are for videos; {benchmark.name} shows pictures.")
    check_sampling(frames, fps)


def _numbered(part: int, samples: Iterator[Sample]) -> Iterator[tuple[int, int, Sample]]:
    return ((part, number, sample) for number, sample in enumerate(samples))


def _samples(benchmark: Benchmark, part: Part, table: Table, shown: Show) -> Iterator[Sample]:
    where = f"{benchmark.name}, {part.files}"
    before = f"{part.config}-" if len(benchmark.parts) > 1 else ""
    seen: Counter[str] = Counter()
    for number, found in enumerate(_rows(benchmark, table, where)):
        row = {**found, **part.adds}
        try:
            name = f"{before}{number}" if benchmark.id is None else str(value(benchmark.id, row))
            seen[name] += 1
            name = name if seen[name] == 1 else f"{name}#{seen[name]}"
            sample = _sample(benchmark, table, number, row, name, shown)
        except _MALFORMED as error:
            said = reason(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {reason(error)}"
            raise ValueError(f"{where}, row {number}: {said}.") from None
        yield sample


def _rows(benchmark: Benchmark, table: Table, where: str) -> Iterator[dict[str, Any]]:
    picture = benchmark.media.column if isinstance(benchmark.media, Pictures) else None
    try:
        yield from table.rows(benchmark.columns, picture)
    except ValueError as error:
        raise ValueError(f"{where}: {reason(error)}.") from None


def _sample(benchmark: Benchmark, table: Table, number: int, row: Row, name: str, shown: Show) -> Sample:
    question = value(benchmark.question, row)
    answers = _texts(value(benchmark.answers, row))
    choices = _texts(value(benchmark.choices, row))
    group = _text(value(benchmark.group, row))
    if not isinstance(question, str) or not question.strip():
        raise ValueError("it has no question")
    if not any(answer.strip() for answer in answers):
        raise ValueError("it has no answer")
    if choices and not set(answers) <= set(choices):
        raise ValueError(f"its answer {answers[0]!r} is none of its choices")
    return Sample(
        id=name,
        question=question,
        media=(shown.medium(table, number, row, f"{benchmark.name}/{group or name}"),),
        answers=answers,
        kind=_text(value(benchmark.kind, row)),
        choices=choices,
        group=group,
    )


def _text(found: Any) -> str:
    return "" if found is None else sys.intern(str(found))


def _texts(found: Any) -> tuple[str, ...]:
    # The same few words come again hundreds of thousands of times.
    return tuple(map(_text, found)) if isinstance(found, list | tuple) else () if found is None else (_text(found),)


def _fingerprint(files: Iterable[Path]) -> str:
    """Of names and sizes, which tell versions apart without gigabytes being read."""
    lines = sorted(f"{file.name} {file.stat().st_size}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
