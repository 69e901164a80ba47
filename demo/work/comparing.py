"""Several methods at the same question: answers, what they spare, and how near they are to the untouched model."""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import vtprune
from vtprune.demo.work.answering import stop_at
from vtprune.demo.work.chosen import Chosen, read_chosen
from vtprune.demo.work.measuring import PATIENCE, ROUNDS
from vtprune.demo.work.media import Question
from vtprune.demo.work.models import Models
from vtprune.evals.runner.answering import answer
from vtprune.models import Loaded
from vtprune.report import Report

MOST = 12
"""Methods that are compared at once."""

ANSWER = 64
"""Answers are cut off after so many tokens."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """The untouched model, or one with methods.

    Args:
        chain: The methods; None for the untouched model.
        answer: What it says.
        same: Whether the untouched model says the same.
        likeness: Share of the probability of the first token that both models give to the same tokens: 1 minus the
            total variation distance, in [0, 1].
        report: What is saved; None for the untouched model.
        ttft_ms: Time to first token in milliseconds, median; None until it is measured.
        error: Why it does not work.
    """

    chain: Chosen | None
    answer: str = ""
    same: bool = True
    likeness: float = 1.0
    report: Report | None = None
    ttft_ms: float | None = None
    error: str = ""

    @property
    def label(self) -> str:
        """What it is called."""
        return "unpruned" if self.chain is None else self.chain.label


def compare(
    models: Models,
    model: str,
    question: Question,
    chains: Sequence[Chosen],
    new_tokens: int,
    stop: threading.Event,
) -> Iterator[list[Entry]]:
    """Ask without and with each of several methods, then time all of them in alternation.

    A turn with the model is taken for each answer, and for each round of the times.

    Args:
        models: The demo's.
        model: Name of one of them.
        question: What is asked.
        chains: The methods; those that refuse the model say so in their entry.
        new_tokens: Answers are cut off there.
        stop: Once set, nothing further begins.

    Yields:
        The entries so far, the untouched model first.

    Raises:
        ValueError: Model and question do not go together.
    """
    entries: list[Entry] = []
    first: Tensor | None = None
    with models.lease(model) as loaded:
        inputs = question.inputs(loaded, new_tokens)
    for chain in (None, *chains):
        with models.lease(model) as loaded:
            if stop.is_set():
                return
            entry, probabilities = _answer(loaded, inputs, chain, new_tokens, stop)
        if first is None:
            first = probabilities
        elif probabilities is not None:
            likeness = float(torch.minimum(first, probabilities).sum())
            entry = dataclasses.replace(entry, likeness=min(likeness, 1.0), same=entry.answer == entries[0].answer)
        entries.append(entry)
        yield list(entries)
    yield _timed(models, model, inputs, entries, stop)


def _answer(
    loaded: Loaded, inputs: Any, chain: Chosen | None, new_tokens: int, stop: threading.Event
) -> tuple[Entry, Tensor | None]:
    """An entry, and the probabilities of the first token."""
    stopping = stop_at(stop)
    if chain is None:
        said = answer(loaded, inputs, new_tokens, stopping_criteria=stopping)
        return Entry(None, said.texts[0]), said.logits[0].softmax(-1)
    try:
        with vtprune.applied(loaded.model, chain.methods):
            said = answer(loaded, inputs, new_tokens, stopping_criteria=stopping)
            report = vtprune.report(loaded.model)
    except ValueError as error:
        return Entry(chain, same=False, likeness=0.0, error=str(error)), None
    return Entry(chain, said.texts[0], report=report), said.logits[0].softmax(-1)


def _timed(models: Models, model: str, inputs: Any, entries: list[Entry], stop: threading.Event) -> list[Entry]:
    start = time.perf_counter()
    found: list[list[float]] = [[] for _ in entries]
    for _ in range(ROUNDS):
        if stop.is_set() or (found[0] and time.perf_counter() - start > PATIENCE):
            break
        with models.lease(model) as loaded:
            for entry, times in zip(entries, found, strict=True):
                if not entry.error and not stop.is_set():
                    times.append(_first_token(loaded, inputs, entry.chain))
    return [
        dataclasses.replace(entry, ttft_ms=statistics.median(times)) if times else entry
        for entry, times in zip(entries, found, strict=True)
    ]


def _first_token(loaded: Loaded, inputs: Any, chain: Chosen | None) -> float:
    if chain is None:
        return answer(loaded, inputs, 1).ttft_ms
    with vtprune.applied(loaded.model, chain.methods):
        return answer(loaded, inputs, 1).ttft_ms


def read_several(written: Sequence[str] | None, keep: float) -> list[Chosen]:
    """The methods to compare, checked.

    Raises:
        ValueError, TypeError: There are none or too many, or one is malformed.
    """
    if not isinstance(written, list | tuple) or not all(isinstance(one, str) for one in written):
        raise TypeError(f"methods must be a list of texts, got {written!r}.")
    if not 1 <= len(written) <= MOST:
        raise ValueError(f"methods must be between 1 and {MOST}, got {len(written)}.")
    return [read_chosen(one, keep) for one in dict.fromkeys(written)]


def document(model: str, question: Question, entries: Sequence[Entry]) -> dict[str, Any]:
    """A comparison, ready for JSON."""
    return {
        "model": model,
        "question": question.text,
        "file": question.file,
        "entries": [
            {
                "method": None if one.chain is None else one.chain.written,
                "keep": None if one.chain is None else one.chain.keep,
                "answer": one.answer,
                "same": one.same,
                "likeness": one.likeness,
                "ttft_ms": one.ttft_ms,
                "report": None if one.report is None else one.report.to_dict(),
                "error": one.error or None,
            }
            for one in entries
        ],
    }
