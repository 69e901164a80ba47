"""`vtprune eval` as a function: a run in a folder, begun or gone on with, by one process or several."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import vtprune
from vtprune.bench.machine import describe_machine
from vtprune.evals.data.sample import QuestionSet
from vtprune.evals.metrics import get_metric
from vtprune.evals.pages.report import write_report
from vtprune.evals.runner.batches import Batch, make_batches, share_of
from vtprune.evals.runner.configurations import Configuration
from vtprune.evals.runner.folder import RunFolder
from vtprune.evals.runner.processes import Processes
from vtprune.evals.runner.records import Record
from vtprune.evals.runner.run import Task, Turn, run_batches
from vtprune.evals.runner.summary import summarise
from vtprune.evals.table import fingerprint
from vtprune.models import Loaded, resolve_model

Started = Callable[[int, int], None]


def evaluate(
    loaded: Loaded,
    questions: QuestionSet,
    configurations: Sequence[Configuration],
    out: Path,
    *,
    on_batch: Callable[[Batch], None] = lambda batch: None,
    **settings: Any,
) -> dict[str, Any]:
    """Ask questions under configurations, and sum up what came of it.

    Args:
        loaded: Model and processor.
        questions: What is asked.
        configurations: What it is asked under, see `vtprune.evals.runner.configurations.plan`.
        out: Folder of the run; new, empty, or that of the same run.
        on_batch: Called after every batch of this process. What it raises ends the run, which can go on later.
        **settings: Further ones of `evaluate_by_batches`.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ValueError, TypeError: As `evaluate_by_batches`.
    """
    with contextlib.closing(evaluate_by_batches(loaded, questions, configurations, out, **settings)) as batches:
        while True:
            try:
                batch = next(batches)
            except StopIteration as finished:
                return finished.value
            on_batch(batch)


def evaluate_by_batches(
    loaded: Loaded,
    questions: QuestionSet,
    configurations: Sequence[Configuration],
    out: Path,
    *,
    metric: str | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 64,
    seed: int = 0,
    pictures: int = 12,
    fresh: bool = False,
    command: str = "",
    processes: Processes | None = None,
    on_start: Started = lambda todo, done: None,
    turn: Turn = contextlib.nullcontext,
) -> Generator[Batch, None, dict[str, Any]]:
    """The same step by step: whoever takes the batches may stop, or do something else in between.

    What `out` holds already of the same run is not asked again. The same batches are formed whatever is there and
    however many processes work, so that answers do not depend on that.

    Args:
        loaded: Model and processor.
        questions: What is asked.
        configurations: What it is asked under.
        out: Folder of the run.
        metric: How answers are judged; None: as suits the questions.
        batch_size: Questions per call of the model.
        max_new_tokens: Answers are cut off there.
        seed: Of the bootstrap, and of whatever a method draws at random without a seed of its own.
        pictures: Of so many questions per configuration whose answer changed, overlays are kept.
        fresh: Start anew, whatever `out` holds.
        command: What reproduces the run; for the report.
        processes: Of the run; by default as the environment says.
        on_start: Called with the questions that this process will ask, and those that are known already.
        turn: Makes what is entered whenever the model is used, batch by batch, where others use it between batches.

    Yields:
        Every batch of this process once its answers are in the folder. Closed there, the run can go on later.

    Returns:
        The summary, as in `summary.json`; of all processes the first one's.

    Raises:
        ValueError: `out` holds something else, a setting is out of range, a method refuses the model, or processes do
            not share the folder.
        TypeError: A setting is of a wrong type.
    """
    processes = processes or Processes()
    judge = get_metric(metric or questions.metric)
    judge.check(questions.samples)
    names = [one.name for one in configurations]
    batches = make_batches(questions.samples, batch_size)
    if max_new_tokens < 1 or pictures < 0:
        raise ValueError(
            f"max_new_tokens must be >= 1 and pictures >= 0, got max_new_tokens={max_new_tokens}, pictures={pictures}."
        )
    for one in configurations[1:]:
        with turn(), vtprune.applied(loaded.model, one.chain()):
            pass  # a method that refuses the model says so before anything is asked
    settings = {
        "model": loaded.name,
        "weights": weights(loaded),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "attention": loaded.model.config._attn_implementation,
        "questions": questions.name,
        "source": questions.source,
        "metric": judge.name,
        "configurations": names,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    folder = RunFolder(out, processes.rank)
    if processes.first:
        if not fresh:
            folder.check(settings)
        folder.claim()
    try:
        if processes.first:
            if fresh:
                folder.clear()
            environment = {**describe_machine(loaded.model.device), "processes": processes.count}
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            folder.begin({"settings": settings, "environment": environment, "started": now, "command": command})
            folder.gather(batches, names)
        processes.wait()
        known = {record.batch for record in folder.known(batches, names)}
        processes.wait()  # nobody writes before all have read
        mine = share_of([batch for batch in batches if batch.number not in known], processes.rank, processes.count)
        on_start(_count(mine), _count(batches) - _count(mine))
        task = Task(questions.samples, judge, configurations, max_new_tokens, seed)
        yield from run_batches(loaded, task, mine, folder, pictures=pictures, turn=turn)
        processes.wait()
        if not processes.first:
            return {}
        records = folder.gather(batches, names)
        _check_complete(records, batches, names)
        summary = sum_up(folder.config, questions, configurations, records)
        folder.finish(summary)
        write_report(folder.path)
        return summary
    finally:
        if processes.first:
            folder.release()


def sum_up(
    config: dict[str, Any], questions: QuestionSet, configurations: Sequence[Configuration], records: Sequence[Record]
) -> dict[str, Any]:
    """The summary of a run, or of what is known of one that goes on.

    Args:
        config: Content of the run's `config.json`.
        questions: What is asked.
        configurations: What it is asked under.
        records: Of some questions under all configurations.
    """
    settings = config["settings"]
    judge = get_metric(settings["metric"])
    return {
        "format": config["format"],
        "name": questions.name,
        "model": settings["model"],
        "metric": judge.name,
        "settings": settings,
        "environment": config["environment"],
        "malformed": list(questions.malformed),
        **summarise(records, questions.samples, judge, configurations, settings["seed"]),
    }


def weights(loaded: Loaded) -> str | None:
    """What tells weights of the same name apart; None for random ones, and a model that was not loaded by a name."""
    try:
        source = resolve_model(loaded.name)
    except ValueError:
        return None
    return fingerprint(loaded.model, source)


def _count(batches: Sequence[Batch]) -> int:
    return sum(len(batch.indices) for batch in batches)


def _check_complete(records: Sequence[Record], batches: Sequence[Batch], names: Sequence[str]) -> None:
    missing = len(names) * _count(batches) - len(records)
    if missing:
        raise ValueError(
            f"{missing} answers of other processes are not in the folder; all machines of a run must see the same "
            "--out (a shared file system). Give the same command again to ask what is missing."
        )
