"""Questions of the user: a text file with one JSON object per line.

The format is described in docs/evaluation-data.md.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from vtprune.evals.data.fields import make_sample, parse_line
from vtprune.evals.data.media import Folder
from vtprune.evals.data.sample import QuestionSet, Sample
from vtprune.evals.metrics import get_metric
from vtprune.files import check_file
from vtprune.videos import check_sampling

_SHOWN = 20


def read_jsonl(
    path: str | os.PathLike[str],
    *,
    metric: str | None = None,
    limit: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
    skip_malformed: bool = False,
) -> QuestionSet:
    """Read questions, and make sure that their pictures and videos are there.

    Args:
        path: The file. What it says of other files is relative to its folder.
        metric: Name of the metric. By default "letter" if all questions have choices, "yes_no" if all right answers are
            yes or no, else "exact_match".
        limit: How many questions, from the first line that is right; all by default. Lines after the last one are not
            looked at.
        frames: How many frames of a video are taken, see `vtprune.videos.load_video`.
        fps: How many frames per second of a video are taken.
        skip_malformed: Leave out lines that cannot be used, and say so in `QuestionSet.malformed`, instead of raising.

    Raises:
        ValueError: Lines cannot be used (the message has them all by number, the first 20 in full); there are none; the
            metric is unknown or does not suit a question; or `limit`, `frames` or `fps` is out of range.
        OSError: There is no such file, it is a folder, or it may not be read.
    """
    if metric is not None:
        get_metric(metric)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 1):
        raise ValueError(f"limit must be a whole number >= 1, got {limit!r}.")
    check_sampling(frames, fps)
    path = Path(path)
    check_file(path, "question file")
    samples, malformed, digest = _read(path, limit, Folder(path.absolute().parent, frames, fps))
    if malformed and not skip_malformed:
        raise ValueError(_report(path, malformed))
    if not samples:
        raise ValueError(_report(path, malformed) if malformed else f"{str(path)!r} holds no questions.")
    metric = metric or _suitable(samples)
    get_metric(metric).check(samples)
    source: dict[str, Any] = {"file": path.name, "sha256": digest, "limit": limit, "frames": frames, "fps": fps}
    return QuestionSet(path.stem, tuple(samples), metric, source, tuple(malformed))


def _read(path: Path, limit: int | None, folder: Folder) -> tuple[list[Sample], list[str], str]:
    """The questions, what is wrong with lines, and the digest of the whole file."""
    samples: list[Sample] = []
    malformed: list[str] = []
    lines: dict[str, int] = {}
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            digest.update(line)
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not content.strip() or len(samples) == limit:
                continue
            try:
                sample = make_sample(parse_line(content), str(number), folder)
                if sample.id in lines:
                    raise ValueError(f"its id {sample.id!r} is that of line {lines[sample.id]} too")
            except (ValueError, OSError) as error:
                malformed.append(f"line {number}: {str(error).rstrip('.')}")
                continue
            lines[sample.id] = number
            samples.append(sample)
    return samples, malformed, digest.hexdigest()


def _report(path: Path, malformed: Sequence[str]) -> str:
    count = "1 line" if len(malformed) == 1 else f"{len(malformed)} lines"
    shown = "".join(f"\n  {problem}" for problem in malformed[:_SHOWN])
    more = f"\n  and {len(malformed) - _SHOWN} more" if len(malformed) > _SHOWN else ""
    return f"{count} of {str(path)!r} cannot be used:{shown}{more}"


def _suitable(samples: Sequence[Sample]) -> str:
    without = [sample.id for sample in samples if not sample.choices]
    if not without:
        return "letter"
    if len(without) < len(samples):
        raise ValueError(
            f"{len(without)} of {len(samples)} questions have no choices, question {without[0]!r} first; name a metric "
            "that asks all of them without (exact_match, say), or split the file."
        )
    known = [sample for sample in samples if sample.answers]
    return "yes_no" if known and not any(map(get_metric("yes_no").objection, known)) else "exact_match"
