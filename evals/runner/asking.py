"""A batch under every configuration: what each question got, or why it failed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import vtprune
from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics import Metric
from vtprune.evals.runner.answering import Answered, answer
from vtprune.evals.runner.configurations import Configuration
from vtprune.evals.runner.likelihood import likeliest
from vtprune.evals.runner.preparing import Call, alone, describe
from vtprune.inputs import make_batch
from vtprune.models import Loaded
from vtprune.report import Report


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one question got.

    Args:
        text: The answer.
        logits: Of the first token, (vocabulary,), float32.
        ttft_ms: Of the call.
        time_ms: Of the call, by its questions.
        new_tokens: Tokens of the answer.
        likelihoods: Of the choices.
        tokens: Visual tokens of the question, before and after; None without methods.
        report: Of the call; None without methods.
        row: Of the question in the call.
        rows: Questions of the call.
    """

    text: str
    logits: Tensor
    ttft_ms: float
    time_ms: float
    new_tokens: int
    likelihoods: tuple[float, ...] | None
    tokens: tuple[int, int] | None
    report: Report | None
    row: int
    rows: int


Outcomes = dict[int, Outcome | str]
"""By a question's index: what it got, or an error in one line."""


class Asker:
    """Asks a model under configurations.

    Args:
        loaded: Model and processor.
        samples: All questions.
        metric: How answers are judged, which says how choices are put.
        max_new_tokens: Answers are cut off there.
    """

    def __init__(self, loaded: Loaded, samples: Sequence[Sample], metric: Metric, max_new_tokens: int) -> None:
        self.loaded, self.samples, self.metric, self.max_new_tokens = loaded, samples, metric, max_new_tokens

    def ask(self, call: Call, configuration: Configuration) -> Outcomes:
        """Answers to a call's questions; if it fails as a whole, each is asked alone, to find those at fault."""
        try:
            return self._ask(call, configuration)
        except Exception as raised:  # whatever it is, it is told, and must not stop the others
            error = describe(raised)
        _free_memory(self.loaded.model.device)
        if len(call.indices) == 1:
            return {call.indices[0]: error}
        found: Outcomes = {}
        for single in alone(self.loaded, call):
            found |= self.ask(single, configuration)
        return found

    def warm_up(self, call: Call, configuration: Configuration) -> None:
        """One token, so that what is done once only (compiling, say) is not timed; errors show when it counts."""
        with contextlib.suppress(Exception), _applied(self.loaded.model, configuration):
            inputs = self._inputs(call)
            answer(self.loaded, inputs, 1)

    def count(self, call: Call) -> Report | None:
        """A report of a prefill in which everything is kept."""
        with contextlib.suppress(Exception), vtprune.applied(self.loaded.model, "uniform", keep=1.0):
            answer(self.loaded, self._inputs(call), 1)
            return vtprune.report(self.loaded.model)
        return None

    def _inputs(self, call: Call) -> Any:
        return make_batch(self.loaded, call.asks) if call.inputs is None else call.inputs

    def _ask(self, call: Call, configuration: Configuration) -> Outcomes:
        inputs = self._inputs(call)
        with _applied(self.loaded.model, configuration):
            if self.metric.asks == "likelihood":
                choices = [self.samples[index].choices for index in call.indices]
                answered = likeliest(self.loaded, inputs, call.asks, choices)
            else:
                answered = answer(self.loaded, inputs, self.max_new_tokens)
            report = vtprune.report(self.loaded.model) if configuration.method is not None else None
        return dict(zip(call.indices, _rows(answered, report), strict=True))


def tokens_of_rows(report: Report, rows: int) -> list[tuple[int, int]]:
    """Visual tokens of each row of a call, before and after."""
    before: Counter[int] = Counter()
    after: Counter[int] = Counter()
    for picture in report.pictures:
        before[picture.row] += picture.tokens
        after[picture.row] += len(picture.kept)
    return [(before[row], after[row]) for row in range(rows)]


@contextlib.contextmanager
def _applied(model: Any, configuration: Configuration) -> Iterator[None]:
    if configuration.method is None:
        yield
        return
    with vtprune.applied(model, configuration.chain()):
        yield


def _rows(answered: Answered, report: Report | None) -> list[Outcome]:
    rows = len(answered.texts)
    likelihoods: Sequence[tuple[float, ...] | None] = answered.likelihoods or [None] * rows
    tokens: Sequence[tuple[int, int] | None] = [None] * rows if report is None else tokens_of_rows(report, rows)
    return [
        Outcome(
            answered.texts[row],
            answered.logits[row],
            answered.ttft_ms,
            answered.time_ms / rows,
            answered.new_tokens[row],
            likelihoods[row],
            tokens[row],
            report,
            row,
            rows,
        )
        for row in range(rows)
    ]


def _free_memory(device: torch.device) -> None:
    """After running out of memory, what was meant for the batch is given back."""
    if device.type != "cpu":
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)
