"""The tables of docs/methods.md: what `vtprune.evals.table` and `vtprune.evals.overheads` found, by method."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from vtprune.methods import get_method

ROW = re.compile(r"(?P<method>[a-z0-9_]+)(?::(?P<parameters>.*?))?(?: keep=(?P<keep>\S+))?")


@dataclasses.dataclass(frozen=True)
class Point:
    """A method at a budget on one model.

    Args:
        keep: The budget; None where the method takes none.
        parameters: Further ones, as they are written; "" for none.
        right: Share of questions answered rightly.
        error: Its standard error.
        tokens: Visual tokens that the decoder's layers see on average, as a share of all.
        flops: Prefill FLOPs, as a share of the unpruned model's.
        cache: Bytes of keys and values after the prefill, likewise; None in tables that do not tell.
        ttft: Time to first token as `vtprune.evals.overheads` has it; None if it was not measured.
        turn: Share of second questions answered rightly on the cache of the first; None if they were not asked.
    """

    keep: str | None
    parameters: str
    right: float
    error: float
    tokens: float
    flops: float
    cache: float | None
    ttft: dict[str, Any] | None
    turn: float | None = None

    @property
    def label(self) -> str:
        """Budget and parameters."""
        return ", ".join(x for x in (self.keep, self.parameters) if x)


@dataclasses.dataclass(frozen=True)
class Table:
    """One model, asked about pictures or clips.

    Args:
        name: Of the model, and what it is asked about where that is clips.
        clips: Whether it is.
        settings: Of the evaluation.
        points: By method, larger budgets first; without methods for videos where pictures are asked about, which they
            leave as they are; of "random" the mean over seeds.
        seeds: Number of these.
        refused: Why methods refuse, by method and what they were asked for.
        unpruned: Share of right answers.
        blank: The same without pictures.
        timed: Settings of the measurement of times; None if there was none.
        turns: Those of the second questions; None if there were none.
        turn: Share of right answers to these.
        blank_turn: The same without pictures.
    """

    name: str
    clips: bool
    settings: dict[str, Any]
    points: dict[str, list[Point]]
    seeds: int
    refused: dict[str, dict[str, str]]
    unpruned: float
    blank: float
    timed: dict[str, Any] | None
    turns: dict[str, Any] | None = None
    turn: float = 0.0
    blank_turn: float = 0.0

    def random(self, keep: str | None) -> Point | None:
        """Random selection with the same budget."""
        return next((x for x in self.points.get("random", ()) if x.keep == keep and not x.parameters), None)


def read_tables(documents: Sequence[dict[str, Any]], models: Sequence[str]) -> list[Table]:
    """Tables of qualities, each with the times of the same model: pictures, then clips, and models in this order."""
    times = {_key(x): x for x in documents if "repeats" in x["settings"]}
    turns = {_key(x): x for x in documents if x["settings"].get("about") == "turns"}
    qualities = {_key(x): x for x in documents if x not in times.values() and x not in turns.values()}
    wanted = [(model, clips) for clips in (False, True) for model in models]
    return [_table(qualities[key], times.get(key), turns.get(key)) for key in wanted if key in qualities]


def _key(document: dict[str, Any]) -> tuple[str, bool]:
    settings = document["settings"]
    return settings["model"], settings.get("about") == "clips"


def _table(document: dict[str, Any], times: dict[str, Any] | None, turns: dict[str, Any] | None) -> Table:
    (model, clips), rows = _key(document), document["rows"]
    further = (turns or {"rows": {}})["rows"]
    points: dict[str, list[Point]] = {}
    refused: dict[str, dict[str, str]] = {}
    for name, row in rows.items():
        match = ROW.fullmatch(name)
        if match is None or row.keys().isdisjoint(("tokens_after", "unsupported")):
            continue  # unpruned, blank
        method, parameters, keep = match["method"], match["parameters"] or "", match["keep"]
        if get_method(method).needs_video and not clips:
            continue
        if "unsupported" in row:
            refused.setdefault(method, {})[keep or ""] = re.sub(r"^.*?cannot work on [^:]+: ", "", row["unsupported"])
            continue
        timed = (times or {"rows": {}})["rows"].get(name, {})
        seen = row.get("tokens_seen", row["tokens_after"])
        error = math.sqrt(row["accuracy"] * (1 - row["accuracy"]) / row["n"])
        share = seen / row["tokens_before"]
        costs = share, row["prefill_flops"], row.get("cache_bytes")
        turn = further.get(name, {}).get("accuracy")
        point = Point(keep, parameters, row["accuracy"], error, *costs, timed.get("ttft"), turn)
        points.setdefault(method, []).append(point)
    points["random"], seeds = over_seeds(points.get("random", []))
    for found in points.values():
        found.sort(key=lambda x: (x.parameters, -float(x.keep or 0)))
    return Table(
        name=f"{model}, clips" if clips else model,
        clips=clips,
        settings=document["settings"],
        points=points,
        seeds=seeds,
        refused=refused,
        unpruned=rows["unpruned"]["accuracy"],
        blank=rows["blank pictures"]["accuracy"],
        timed=times and times["settings"],
        turns=turns and turns["settings"],
        turn=further["unpruned"]["accuracy"] if turns else 0.0,
        blank_turn=further["blank pictures"]["accuracy"] if turns else 0.0,
    )


def over_seeds(points: Sequence[Point]) -> tuple[list[Point], int]:
    """Random selection with several seeds as one point per budget, with the mean share of right answers; and all else.

    One draw keeps the same places in all pictures, so that it may be a lucky one. The standard error stays that of one
    draw: all were asked the same questions.
    """
    found: dict[str | None, list[Point]] = {}
    others = []
    for point in points:
        if not point.parameters or re.fullmatch(r"seed=\d+", point.parameters):
            found.setdefault(point.keep, []).append(point)
        else:
            others.append(point)
    means = [
        dataclasses.replace(
            next((x for x in draws if not x.parameters), draws[0]),
            parameters="",
            right=sum(x.right for x in draws) / len(draws),
        )
        for draws in found.values()
    ]
    return [*means, *others], max(map(len, found.values()), default=1)
