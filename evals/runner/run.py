"""An evaluation: all batches under all configurations, noted down as they are answered."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics import Metric
from vtprune.evals.runner.asking import Asker, Outcome, Outcomes, tokens_of_rows
from vtprune.evals.runner.batches import Batch
from vtprune.evals.runner.configurations import UNPRUNED, Configuration
from vtprune.evals.runner.fidelity import kl_divergence, logit_error
from vtprune.evals.runner.folder import RunFolder
from vtprune.evals.runner.pictures import Pictures
from vtprune.evals.runner.preparing import Call, Prepared, ahead, prepare
from vtprune.evals.runner.records import Record
from vtprune.models import Loaded
from vtprune.report import Report

DIGITS = 6

Turn = Callable[[], AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be done.

    Args:
        samples: The questions.
        metric: How answers are judged.
        configurations: What they are asked under; the first one is the unpruned model.
        max_new_tokens: Answers are cut off there.
        seed: Of whatever is drawn at random.
    """

    samples: Sequence[Sample]
    metric: Metric
    configurations: Sequence[Configuration]
    max_new_tokens: int = 64
    seed: int = 0


def run_batches(
    loaded: Loaded,
    task: Task,
    batches: Sequence[Batch],
    folder: RunFolder,
    *,
    pictures: int = 12,
    turn: Turn = contextlib.nullcontext,
) -> Iterator[Batch]:
    """Ask the questions of some batches under all configurations.

    Args:
        loaded: Model and processor; the model is left as it was.
        task: What is asked.
        batches: Those that are to be asked, see `vtprune.evals.runner.batches`.
        folder: Where records go.
        pictures: Of so many questions per configuration whose answer changed, overlays are drawn.
        turn: Makes what is entered around each batch, where others use the model between batches.

    Yields:
        Every batch, once its answers are in the folder.
    """
    asker = Asker(loaded, task.samples, task.metric, task.max_new_tokens)
    drawer = Pictures(folder.pictures, loaded.processor, pictures)
    ready = functools.partial(prepare, loaded, task.samples, task.metric)
    warm = False
    # On a CPU a second thread would take time from the model, and its times would not be its own.
    for prepared in ahead(ready, batches, threaded=loaded.model.device.type != "cpu"):
        with turn():
            if not warm:
                warm = _warm_up(asker, prepared, task.configurations)
            torch.manual_seed(task.seed + prepared.batch.number)
            records = _ask(asker, task, prepared, drawer)
        folder.append(records)
        yield prepared.batch


def _warm_up(asker: Asker, prepared: Prepared, configurations: Sequence[Configuration]) -> bool:
    cold = configurations[:1] if asker.loaded.model.device.type == "cpu" else configurations
    for call in prepared.calls[:1]:
        for configuration in cold:
            asker.warm_up(call, configuration)
    return bool(prepared.calls)


def _ask(asker: Asker, task: Task, prepared: Prepared, drawer: Pictures) -> list[Record]:
    """The records of a batch, question by question."""
    records: dict[tuple[int, str], Record] = {}
    blank = functools.partial(_blank, task.samples, prepared.batch.number)
    for index, error in prepared.failures.items():
        for one in task.configurations:
            records[index, one.name] = dataclasses.replace(blank(index, one), error=error)
    for call in prepared.calls:
        answered = [asker.ask(call, one) for one in task.configurations]
        before = _before(asker, call, answered)
        unpruned = answered[0]
        for one, outcomes in zip(task.configurations, answered, strict=True):
            for index, ask in zip(call.indices, call.asks, strict=True):
                record, outcome = blank(index, one), outcomes[index]
                if isinstance(outcome, str):
                    record = dataclasses.replace(record, error=outcome)
                else:
                    record = _judged(task, record, outcome, before.get(index), unpruned[index])
                    record = drawer.draw(record, ask, outcome)
                records[index, one.name] = record
    order = [(index, one.name) for index in prepared.batch.indices for one in task.configurations]
    return [records[key] for key in order]


def _blank(samples: Sequence[Sample], batch: int, index: int, configuration: Configuration) -> Record:
    sample = samples[index]
    names = tuple(medium.name for medium in sample.media)
    return Record(
        sample.id, index, configuration.name, batch, sample.kind, sample.about, names, sample.question, sample.answers
    )


Before = tuple[int, float, float | None]
"""Visual tokens, prefill FLOPs and bytes of the cache of a question, had nothing been pruned."""


def _before(asker: Asker, call: Call, answered: Sequence[Outcomes]) -> dict[int, Before]:
    """What each question takes without pruning: any report tells; where there is none, one is made."""
    found: dict[int, Before] = {}
    for outcomes in answered:
        for index, outcome in outcomes.items():
            if isinstance(outcome, Outcome) and outcome.report is not None and outcome.tokens is not None:
                found.setdefault(index, _taken(outcome.report, outcome.tokens, outcome.rows))
    if not found and any(isinstance(outcome, Outcome) for outcome in answered[0].values()):
        report, rows = asker.count(call), len(call.indices)
        if report is not None:
            tokens = tokens_of_rows(report, rows)
            found = {index: _taken(report, own, rows) for index, own in zip(call.indices, tokens, strict=True)}
    return found


def _taken(report: Report, tokens: tuple[int, int], rows: int) -> Before:
    held = report.kv_bytes_before
    return tokens[0], report.prefill_flops_before / rows, None if held is None else held / rows


def _judged(task: Task, record: Record, outcome: Outcome, before: Before | None, unpruned: Outcome | str) -> Record:
    sample = task.samples[record.index]
    values: dict[str, Any] = {
        "answer": outcome.text,
        "score": task.metric.score(outcome.text, sample) if sample.answers else None,
        "ttft_ms": round(outcome.ttft_ms, 3),
        "time_ms": round(outcome.time_ms, 3),
        "new_tokens": outcome.new_tokens,
        "likelihoods": outcome.likelihoods,
    }
    if before is not None:
        values |= dict(zip(("visual_tokens_before", "flops_before", "kv_bytes_before"), before, strict=True))
        values |= dict(zip(("visual_tokens_after", "flops_after", "kv_bytes_after"), before, strict=True))
    if outcome.report is not None and outcome.tokens is not None:
        report, rows = outcome.report, outcome.rows
        values["visual_tokens_after"] = outcome.tokens[1]
        values["flops_after"] = report.prefill_flops_after / rows
        values["kv_bytes_after"] = None if report.kv_bytes_after is None else report.kv_bytes_after / rows
    if record.configuration != UNPRUNED and isinstance(unpruned, Outcome):
        new, old = outcome.logits[None], unpruned.logits[None]
        values["agrees"] = outcome.text == unpruned.text
        values["kl"] = round(kl_divergence(new, old)[0], DIGITS)
        values["logit_error"] = round(logit_error(new, old)[0], DIGITS)
    return dataclasses.replace(record, **values)
