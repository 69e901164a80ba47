"""The questions whose answer pruning changed."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vtprune.evals.pages.runs import UNPRUNED, Run
from vtprune.evals.runner.records import Record

Group = Literal["lost", "gained", "other"]
GROUPS: tuple[Group, ...] = ("lost", "gained", "other")


@dataclasses.dataclass
class Changes:
    """What changed under one configuration.

    Args:
        counts: How many questions: "lost" were answered better without pruning, "gained" worse, and of "other" nobody
            knows, or the answers are equally good.
        shown: Some of them, before and after; those with pictures come first, as far as they are kept.
    """

    counts: dict[Group, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(GROUPS, 0))
    shown: dict[Group, list[tuple[Record, Record]]] = dataclasses.field(default_factory=lambda: {x: [] for x in GROUPS})


def find_changes(run: Run, most: int) -> dict[str, Changes]:
    """Under each configuration, the questions whose answer is not the unpruned model's.

    Args:
        run: The run.
        most: So many are shown of each group.

    Raises:
        ValueError: `questions.jsonl` is damaged.
    """
    found = {one["name"]: Changes() for one in run.configurations if one["name"] != UNPRUNED}
    for records in run.questions():
        before = records.get(UNPRUNED)
        if before is None or before.answer is None:
            continue
        for name, changes in found.items():
            after = records.get(name)
            if after is not None and after.answer is not None and after.agrees is False:
                group = _group(before, after)
                changes.counts[group] += 1
                _show(changes.shown[group], (before, after), most)
    return found


def _group(before: Record, after: Record) -> Group:
    if before.score is None or after.score is None or before.score == after.score:
        return "other"
    return "lost" if after.score < before.score else "gained"


def _show(shown: list[tuple[Record, Record]], pair: tuple[Record, Record], most: int) -> None:
    """A question with a picture takes the place of the last one without."""
    if len(shown) < most:
        shown.append(pair)
    elif pair[1].picture is not None:
        without = [place for place, (_, after) in enumerate(shown) if after.picture is None]
        if without:
            del shown[without[-1]]
            shown.append(pair)
    shown.sort(key=lambda one: one[1].picture is None)
