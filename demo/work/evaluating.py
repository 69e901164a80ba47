"""A quick evaluation: a few questions under some methods and budgets, taking turns with the other visitors."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtprune.budget import Budget, check_keep
from vtprune.demo.work.chains import read_chain
from vtprune.demo.work.models import Models
from vtprune.evals.data.suites import SUITES, read_suite
from vtprune.evals.pages.runs import Run
from vtprune.evals.runner.configurations import Configuration, plan
from vtprune.evals.runner.evaluate import evaluate_by_batches, sum_up
from vtprune.evals.runner.folder import CONFIG, QUESTIONS, read_records
from vtprune.methods.parse import parse_value

BATCH = 4
"""Questions of a turn with the model: few, so that others need not wait long."""

MOST = 24
"""Methods at budgets."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be evaluated.

    Args:
        model: Name of the model.
        suite: "scenes" or "clips".
        methods: As the command line writes them.
        budgets: Each method that has none of its own is asked at each.
        questions: How many.
    """

    model: str
    suite: str
    methods: tuple[str, ...]
    budgets: tuple[Budget, ...]
    questions: int

    @property
    def configurations(self) -> list[Configuration]:
        """The unpruned model, then methods at budgets."""
        return plan(self.methods, self.budgets)

    def command(self) -> list[str]:
        """The words of the command line that does the same, but for how the model is loaded."""
        words = ["vtprune", "eval", "--model", self.model, "--suite", self.suite, "--method", *self.methods]
        if self.budgets:
            words += ["--keep", *map(str, self.budgets)]
        return [*words, "--limit", str(self.questions), "--batch-size", str(BATCH)]

    def python(self, loading: Mapping[str, str | bool]) -> str:
        """A line of Python that does the same, below what it needs to import.

        Args:
            loading: What else than its name the model is loaded with, by argument of `vtprune.models.load_model`.
        """
        more = "".join(f", {name}={value!r}" for name, value in loading.items())
        return (
            "import pathlib\n"
            "from vtprune.evals.data.suites import read_suite\n"
            "from vtprune.evals.runner.configurations import plan\n"
            "from vtprune.evals.runner.evaluate import evaluate\n"
            "from vtprune.models import load_model\n\n"
            f"evaluate(load_model({self.model!r}{more}), read_suite({self.suite!r}, limit={self.questions}), "
            f"plan({list(self.methods)}, {list(self.budgets)}), pathlib.Path('runs/mine'), batch_size={BATCH})"
        )


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far an evaluation is.

    Args:
        done: Questions that were answered under all configurations.
        wanted: Questions in all.
        seconds: Since it began.
        run: What is known so far; None before the first answers.
        stopped: Whether it ended before all was answered.
    """

    done: int
    wanted: int
    seconds: float = 0.0
    run: Run | None = None
    stopped: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.stopped or self.done == self.wanted

    @property
    def text(self) -> str:
        """For people."""
        asked = f"{self.done} of {self.wanted} questions"
        if self.stopped:
            return f"Stopped after {asked}{'; the curves are of these' if self.done else ''}."
        if self.done == self.wanted:
            return f"Done: {asked} in {_span(self.seconds)}."
        if not self.done:
            return "Waiting for the first answers \N{HORIZONTAL ELLIPSIS}"
        return f"{asked}, {_span(self.seconds / self.done * (self.wanted - self.done))} left"


class _Stopped(Exception):
    """It was one's turn, but nothing is to be done any more."""


def read_wanted(
    models: Models,
    model: str,
    suite: str,
    methods: Sequence[str],
    budgets: Sequence[str],
    questions: float,
    most_questions: int,
) -> Wanted:
    """Check what a visitor wants.

    Args:
        models: Those of the demo.
        model: Name of one.
        suite: "scenes" or "clips".
        methods: Methods or chains, as the command line writes them.
        budgets: Shares of the visual tokens ("0.25") or numbers of tokens ("64").
        questions: How many.
        most_questions: So many may be asked.

    Raises:
        ValueError, TypeError: One of them is malformed, unknown or out of range, or they do not go together.
    """
    models.get(model)  # says so if there is none
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}.")
    if suite == "clips":
        models.check_clips(model)
    if questions != int(questions) or not 1 <= questions <= most_questions:
        raise ValueError(f"questions must be a whole number between 1 and {most_questions}, got {questions:g}.")
    if not methods:
        raise ValueError("methods must be at least one, got none.")
    for one in methods:
        read_chain(one)
    kept = tuple(dict.fromkeys(check_keep(parse_value(one)) for one in budgets))
    wanted = Wanted(model, suite, tuple(dict.fromkeys(methods)), kept, int(questions))
    asked = len(wanted.configurations) - 1
    if asked > MOST:
        raise ValueError(f"methods at budgets must be at most {MOST}, got {asked}; choose fewer of either.")
    return wanted


def evaluate(models: Models, wanted: Wanted, scratch: Path, stop: threading.Event) -> Iterator[Progress]:
    """Evaluate batch by batch, with a turn for each; what it needs of the disk is gone in the end.

    Args:
        models: Those of the demo.
        wanted: What is to be evaluated.
        scratch: Where a folder is made for it.
        stop: Once it is set, no further batch is begun.

    Yields:
        How far it is: at once, after every batch, and in the end.

    Raises:
        ValueError: A method refuses the model.
    """
    questions = read_suite(wanted.suite, limit=wanted.questions)
    configurations = wanted.configurations
    began, now = time.monotonic(), Progress(0, wanted.questions)

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        with models.lease(wanted.model):
            if stop.is_set():
                raise _Stopped
            yield

    yield now
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="evaluation-", dir=scratch) as name, contextlib.suppress(_Stopped):
        folder = Path(name) / "run"
        batches = evaluate_by_batches(
            models.get(wanted.model),
            questions,
            configurations,
            folder,
            batch_size=BATCH,
            pictures=0,
            turn=turn,
        )
        with contextlib.closing(batches):
            for batch in batches:
                config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
                summary = sum_up(config, questions, configurations, read_records(folder / QUESTIONS))
                known = Run(folder, summary, config)
                now = Progress(now.done + len(batch.indices), wanted.questions, time.monotonic() - began, known)
                if stop.is_set() or now.ended:
                    break  # all that is shown is known
                yield now
    yield dataclasses.replace(now, stopped=now.done < now.wanted)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
