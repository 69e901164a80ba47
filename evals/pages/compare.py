"""Several runs side by side: what may be compared, and differences on the questions that they share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vtprune.evals.pages.runs import UNPRUNED, Run, read_run
from vtprune.evals.statistics import paired_interval

Answers = dict[str, tuple[float, str]]
"""By a question's id: how good the answer was, and what the bootstrap draws together."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A configuration of a run beside one of another run, on the questions that both answered.

    Args:
        run: Name of the run.
        configuration: Of the run.
        against_run: Name of the run that it is compared with.
        against: Configuration of that run.
        n: Questions that both answered.
        difference: How much better the first one is, as a share; None if there are no such questions.
        interval: Of 95 %; None if the questions are all about one picture.
    """

    run: str
    configuration: str
    against_run: str
    against: str
    n: int
    difference: float | None
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Section:
    """Runs of one model on the same questions, judged alike; they may have asked different numbers of them.

    Args:
        runs: With their names.
        differences: Of the later runs to the first.
        warnings: What the runs differ in.
    """

    runs: tuple[tuple[str, Run], ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All runs; only those of a section may be compared.

    Args:
        sections: Of runs.
        warnings: Why there are several sections.
    """

    sections: tuple[Section, ...]
    warnings: tuple[str, ...]


def compare(folders: Sequence[Path]) -> Comparison:
    """Read runs, and compare those that can be compared.

    Args:
        folders: Of the runs.

    Raises:
        ValueError: A folder is given twice, is not that of a finished run, or is damaged, or scipy is missing.
    """
    paths = [folder.resolve() for folder in folders]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise ValueError(f"{str(folders[place])!r} is given twice; give every run once.")
    runs = list(zip(short_names(paths), map(read_run, folders), strict=True))
    together: dict[str, list[tuple[str, Run]]] = {}
    for name, run in runs:
        together.setdefault(json.dumps(_questions(run), sort_keys=True), []).append((name, run))
    sections = tuple(
        Section(tuple(some), tuple(_differences(some)), tuple(_within(some))) for some in together.values()
    )
    return Comparison(sections, tuple(_between(sections)))


def short_names(paths: Sequence[Path]) -> list[str]:
    """As many of the last parts of each path as tell them apart.

    Args:
        paths: At least one, all different.
    """
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _questions(run: Run) -> dict[str, Any]:
    """What must be the same to compare; the number of questions may differ."""
    settings = run.summary["settings"]
    source = {name: value for name, value in settings["source"].items() if name != "limit"}
    return {
        "model": run.summary["model"],
        "weights": settings["weights"],
        "question set": run.summary["name"],
        "source of the questions": source,
        "metric": run.summary["metric"],
        "right answers": run.judged,
    }


def _between(sections: Sequence[Section]) -> Iterator[str]:
    if len(sections) < 2:
        return
    all_of = [_questions(section.runs[0][1]) for section in sections]
    differ = [name for name in all_of[0] if any(one[name] != all_of[0][name] for one in all_of)]
    yield f"The runs differ in {_listed(differ)}. Each has a section with its like; do not compare across sections."


def _within(runs: Sequence[tuple[str, Run]]) -> Iterator[str]:
    asked = {name: run.summary["n"] for name, run in runs}
    if len(set(asked.values())) > 1:
        said = ", ".join(f"{name} {n}" for name, n in asked.items())
        yield f"Not the same number of questions: {said}. Differences are of the questions that two runs share."
    timed = {
        "machine": {json.dumps(_machine(run), sort_keys=True) for _, run in runs},
        "batch size": {run.summary["settings"].get("batch_size") for _, run in runs},
        "number type": {run.summary["settings"].get("dtype") for _, run in runs},
        "attention": {run.summary["settings"].get("attention") for _, run in runs},
    }
    differ = [name for name, values in timed.items() if len(values) > 1]
    if differ:
        yield f"Times are not comparable: the runs differ in {_listed(differ)}."


def _machine(run: Run) -> dict[str, Any]:
    """The environment without versions."""
    names = ("device", "cpu", "cores", "threads", "processes")
    return {name: run.summary["environment"].get(name) for name in names}


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _differences(runs: Sequence[tuple[str, Run]]) -> Iterator[Difference]:
    (first_name, first), *others = runs
    if not others:
        return
    of_first = _answers(first)
    for name, run in others:
        of_run = _answers(run)
        for one, other in _pairs(run, first):
            if one == UNPRUNED and not run.judged:
                continue  # it agrees with itself
            yield _difference((name, one, of_run[one]), (first_name, other, of_first[other]))


def _pairs(run: Run, first: Run) -> Iterator[tuple[str, str]]:
    """Each configuration beside its namesake in the first run; where there is none, those of the same budget."""
    mine, theirs = ({one["name"]: one for one in each.configurations} for each in (run, first))
    for name, one in mine.items():
        if name in theirs:
            yield name, name
        else:
            yield from ((name, x) for x in theirs if x not in mine and theirs[x]["keep"] == one["keep"])


def _answers(run: Run) -> dict[str, Answers]:
    """By configuration: scores, or without right answers whether the unpruned model said the same."""
    found: dict[str, Answers] = {one["name"]: {} for one in run.configurations}
    for records in run.questions():
        for name, record in records.items():
            score = record.score if run.judged else None if record.agrees is None else float(record.agrees)
            if score is not None:
                found[name][record.id] = (score, record.group)
    return found


def _difference(one: tuple[str, str, Answers], other: tuple[str, str, Answers]) -> Difference:
    mine, theirs = one[2], other[2]
    both = [question for question in mine if question in theirs]
    difference = interval = None
    if both:
        scores, others = [mine[x][0] for x in both], [theirs[x][0] for x in both]
        difference = (sum(scores) - sum(others)) / len(both)
        found = paired_interval(scores, others, [mine[x][1] for x in both])
        interval = None if found is None else found[1:]
    return Difference(one[0], one[1], other[0], other[1], len(both), difference, interval)
