"""The best chain of methods at a share of prefill FLOPs, found on calibration questions and judged on others.

The share counts encoder, projector and decoder, over those of the unpruned model, as reports do. Candidates are those
of `vtprune.evals.chains`; their open budgets are set so that they meet the share; successive halving chooses by the
mean log-likelihood of right answers, on questions that are the same for all. The best one is then tried with every
cache method, and of all finalists within one standard error of the best (of paired differences) the one with the
smallest cache wins. Held-out questions are about other pictures, of another test set, and are asked at the very end
only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

import vtprune
from vtprune.bench.machine import describe_machine, machine_line
from vtprune.evals.chains import CACHE, GRID, Candidate, Fit, candidates, fit
from vtprune.evals.halving import halve, standard_error, wilson
from vtprune.evals.journal import Journal
from vtprune.evals.probes import Probe, Reading, check_suite, draw_questions
from vtprune.evals.suite import judge
from vtprune.evals.table import fingerprint, write_whole
from vtprune.models import Loaded, resolve_model
from vtprune.report import Report

Metric = Literal["likelihood", "agreement", "accuracy"]
METRICS = ("likelihood", "agreement", "accuracy")
CALIBRATION_SEED, HELD_OUT_SEED = 1, 2
"""Test sets that share no picture with one another, nor with that of the tables (0)."""
FITTING = 2  # questions on which shares are counted; the first two
TOLERANCE = 1.02  # counts that follow from the content may miss a share by so much
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a search depends on, beside the model.

    Args:
        suite: "scenes" or "clips".
        metric: By what chains are chosen: log-likelihood of right answers, of the model's own, or the share of right
            ones.
        calibration: Number of questions for choosing, >= 24.
        held_out: Number of questions for judging, >= 1.
        batch_size: Questions per call.
    """

    suite: str = "scenes"
    metric: Metric = "likelihood"
    calibration: int = 192
    held_out: int = 300
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Check them."""
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {self.metric!r}.")
        for name, least in (("calibration", 24), ("held_out", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be a whole number >= {least}, got {getattr(self, name)}.")

    @property
    def rounds(self) -> tuple[int, ...]:
        """Questions that have been asked by the end of each round."""
        return self.calibration // 12, self.calibration // 6, self.calibration // 3, self.calibration

    def to_dict(self) -> dict[str, Any]:
        """For the document."""
        return {
            "suite": self.suite,
            "metric": self.metric,
            "calibration": {"seed": CALIBRATION_SEED, "questions": self.calibration},
            "held_out": {"seed": HELD_OUT_SEED, "questions": self.held_out},
            "batch_size": self.batch_size,
        }


class Search:
    """A search on one model.

    Args:
        loaded: Model and processor.
        settings: What it depends on.
        journal: What is known already.
        progress: Called with what is being done, how far, and out of how much.
    """

    def __init__(
        self, loaded: Loaded, settings: Settings, journal: Journal, progress: Progress = lambda *step: None
    ) -> None:
        self.loaded, self.settings, self.journal, self.progress = loaded, settings, journal, progress
        check_suite(loaded, settings.suite)
        questions = draw_questions(settings.suite, settings.calibration, CALIBRATION_SEED)
        answers: Any = "own" if settings.metric == "agreement" else "right"
        self.probe = Probe(loaded, questions, answers=answers, batch_size=settings.batch_size)
        self.held_out = draw_questions(settings.suite, settings.held_out, HELD_OUT_SEED)

    # What is measured, each once.

    def reading(self, chain: Sequence[str], questions: int) -> Reading:
        """The first so many calibration questions, one of the rounds' numbers."""
        found: Reading | None = None
        edges = [0, *self.settings.rounds]
        for first, last in itertools.pairwise(edges):
            if last > questions:
                break
            read = functools.partial(self._read, chain, first, last)
            value = self.journal.get(f"{_label(chain)} | {first}-{last}", read)
            one = Reading(*map(tuple, value))
            found = one if found is None else found + one
        if found is None:
            raise ValueError(f"{questions} is no number of questions of a round.")
        return found

    def _read(self, chain: Sequence[str], first: int, last: int) -> list[Any]:
        return _packed(self.probe.read(chain, first, last))

    def _share_at(self, one: Candidate, level: int) -> float | str:
        return self.share(one.chain(level))

    def scores(self, chain: Sequence[str], questions: int) -> list[float]:
        """By which chains are compared."""
        reading = self.reading(chain, questions)
        return list(map(float, reading.right if self.settings.metric == "accuracy" else reading.likelihood))

    def share(self, chain: Sequence[str]) -> float | str:
        """Share of FLOPs on a few questions, or why the model refuses the chain."""

        def measure() -> float | str:
            try:
                return _ratio(self.probe.reports(chain, FITTING), "prefill_flops")
            except ValueError as error:
                return str(error)

        value: float | str = self.journal.get(f"{_label(chain)} | share", measure)
        return value

    def judged(self, chain: Sequence[str]) -> dict[str, Any]:
        """Answers to the held-out questions, by ordinary generation."""

        def ask() -> dict[str, Any]:
            reports: list[Report] = []

            def after_batch(questions: int) -> None:
                report = vtprune.report(self.loaded.model) if chain else None
                if report is not None:
                    reports.append(report)

            model = self.loaded.model
            with vtprune.applied(model, list(chain)) if chain else contextlib.nullcontext():
                size = self.settings.batch_size
                found = judge(model, self.loaded.processor, self.held_out, batch_size=size, on_batch=after_batch)
            flops, kv = (_ratio(reports, "prefill_flops"), _ratio(reports, "kv_bytes")) if reports else (1.0, 1.0)
            return {"right": [int(good) for _, good in found], "share": flops, "kv_share": kv}

        value: dict[str, Any] = self.journal.get(f"{_label(chain)} | held out", ask)
        return value

    # The search.

    def find(self, wanted: float) -> dict[str, Any]:
        """The best chain that needs at most a share of the FLOPs.

        Raises:
            ValueError: `wanted` is no share.
        """
        if not 0 < wanted < 1:
            raise ValueError(f"flops must be a share in (0, 1), got {wanted!r}; for 25 percent write 0.25.")
        fits = self._fits(wanted)
        chains = [x.chain(f.level) for x, f in fits if f.level is not None and f.level < GRID]
        late = [(x, f) for x, f in fits if f.level is None and f.share is not None]
        found: dict[str, Any] = {
            "wanted": wanted,
            "reached": bool(chains),
            "candidates": len(fits),
            "meeting": len(chains),
            "needless": sum(f.level == GRID for _, f in fits),
            "not_reaching": len(late),
            "refused": {x.name: f.reason for x, f in fits if f.level is None and f.share is None},
        }
        if chains:
            label = f"{wanted:.0%} of FLOPs"
            finalists = self._halved(chains, label)
            tried = [*finalists, *self._cached(finalists[0], label)]
            best = self._choose(tried, wanted)
            alone = [chain for chain in chains if len(chain) == 1]
            found["finalists"] = [self._calibrated(chain) for chain in tried]
            found["best"] = self.outcome(best)
            if alone:
                found["single"] = self.outcome(self._choose(self._halved(alone, f"{label}, single methods"), wanted))
        elif late:
            closest, least = min(late, key=lambda one: one[1].share or 1.0)
            found["closest"] = self.outcome(closest.chain(least.least or GRID))
        return found

    def _fits(self, wanted: float) -> list[tuple[Candidate, Fit]]:
        everything, fits = candidates(), []
        for number, one in enumerate(everything):
            self.progress(f"{wanted:.0%} of FLOPs: budgets", number, len(everything))
            fits.append((one, fit(functools.partial(self._share_at, one), wanted)))
        return fits

    def _halved(self, chains: Sequence[tuple[str, ...]], label: str) -> list[tuple[str, ...]]:
        def on_candidate(number: int, done: int, total: int) -> None:
            questions = self.settings.rounds[number]
            self.progress(f"{label}: round {number + 1}, {questions} questions", done, total)

        return halve(chains, self.scores, self.settings.rounds, on_candidate)

    def _cached(self, chain: tuple[str, ...], label: str) -> list[tuple[str, ...]]:
        """The chain before every cache method that the model takes behind it."""
        found = []
        for number, cache in enumerate(CACHE):
            self.progress(f"{label}: cache", number, len(CACHE))
            longer = (*chain, cache)
            if not isinstance(self.share(longer), str):
                self.reading(longer, self.settings.calibration)
                found.append(longer)
        return found

    def _choose(self, chains: Sequence[tuple[str, ...]], wanted: float) -> tuple[str, ...]:
        """Of those within one standard error of the best the one with the smallest cache."""
        last = self.settings.calibration
        meeting = [x for x in chains if self.reading(x, last).share <= wanted * TOLERANCE] or list(chains)
        scored = {chain: self.scores(chain, last) for chain in meeting}
        best = max(meeting, key=lambda chain: sum(scored[chain]))
        near = []
        for chain in meeting:
            behind = [x - y for x, y in zip(scored[best], scored[chain], strict=True)]
            if sum(behind) / len(behind) <= standard_error(behind):
                near.append(chain)
        return min(near, key=lambda chain: (round(self.reading(chain, last).kv_share, 3), -sum(scored[chain])))

    def _calibrated(self, chain: Sequence[str]) -> dict[str, Any]:
        reading = self.reading(chain, self.settings.calibration)
        return {
            "chain": list(chain),
            "likelihood": round(reading.mean, 4),
            "accuracy": round(reading.accuracy, 4),
            "share": round(reading.share, 4),
            "kv_share": round(reading.kv_share, 4),
        }

    def outcome(self, chain: Sequence[str]) -> dict[str, Any]:
        """A chain on calibration and on held-out questions, with intervals of 95 %."""
        self.progress("held-out questions", 0, 1)
        whole, mine = self.judged(()), self.judged(chain)
        right, asked = sum(mine["right"]), len(mine["right"])
        less = [x - y for x, y in zip(mine["right"], whole["right"], strict=True)]
        middle, half = sum(less) / asked, 1.96 * standard_error(less)
        low, high = wilson(right, asked)
        return {
            "chain": list(chain),
            "apply": f"vtprune.apply(model, {list(chain)!r})" if chain else "",
            "arguments": " ".join(f"--method {part}" for part in chain),
            "calibration": {k: v for k, v in self._calibrated(chain).items() if k != "chain"},
            "held_out": {
                "accuracy": round(right / asked, 4),
                "interval": [round(low, 4), round(high, 4)],
                "against_unpruned": [round(x, 4) for x in (middle, middle - half, middle + half)],
                "share": round(mine["share"], 4),
                "kv_share": round(mine["kv_share"], 4),
            },
        }


def about_model(loaded: Loaded, name: str) -> dict[str, Any]:
    """What a document says about the model, the versions and the machine."""
    return {
        "model": name,
        "weights": fingerprint(loaded.model, resolve_model(name)) if not name.startswith("random:") else None,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "vtprune": vtprune.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "machine": machine_line(describe_machine(loaded.model.device)),
    }


def run_search(search: Search, shares: Sequence[float], about: dict[str, Any], out: Path) -> dict[str, Any]:
    """Search for all shares, largest first; the document is written after each.

    Raises:
        ValueError: `out` holds a search with other settings.
    """
    about = {**about, **search.settings.to_dict()}
    document: dict[str, Any] = {"search": about, "unpruned": {}, "budgets": {}}
    if out.exists():
        document = json.loads(out.read_text(encoding="utf-8"))
        held = document.get("search")
        if held is None or _fixed(held) != _fixed(about):
            raise ValueError(f"out must be a new file or hold a search with {_fixed(about)}, got {str(out)!r}.")
    for share in sorted(shares, reverse=True):
        if f"{share:g}" not in document["budgets"]:
            document["budgets"][f"{share:g}"] = search.find(share)
            document["unpruned"] = document["unpruned"] or search.outcome(())
            write_whole(out, json.dumps(document, indent=1) + "\n")
    return document


def _fixed(about: dict[str, Any]) -> dict[str, Any]:
    """What must be the same when a search goes on; the machine may differ, and so may the shares asked for."""
    return {key: value for key, value in about.items() if key not in ("machine", "command")}


def _label(chain: Sequence[str]) -> str:
    return " + ".join(chain) or "unpruned"


def _packed(reading: Reading) -> list[Any]:
    likelihood = [round(x, 5) for x in reading.likelihood]
    return [likelihood, list(reading.right), list(reading.flops), list(reading.kv_bytes)]


def _ratio(reports: Sequence[Report], name: str) -> float:
    before, after = (sum(getattr(x, f"{name}_{when}") or 1 for x in reports) for when in ("before", "after"))
    return float(after / before)
