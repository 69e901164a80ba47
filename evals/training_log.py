"""What is seen of a training run: a progress bar with loss and time left, and a file with one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from vtprune.evals import checkpoints
from vtprune.evals.phases import Phase

_EVERY = 50


class TrainingLog:
    """A context manager around a run.

    Args:
        file: Where the lines go; lines of an earlier part of the run are kept.
        phases: The recipe, by which the time left is known.
    """

    def __init__(self, file: Path, phases: Sequence[Phase]) -> None:
        self.file, self.phases = file, phases
        self._losses: list[Tensor] = []
        self._bar = Progress(
            TextColumn("{task.fields[phase]}"),
            BarColumn(),
            TextColumn("step {task.fields[step]}, loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        total = sum(phase.minutes for phase in phases) * 60
        self._task = self._bar.add_task("", total=total, phase="", step=0, loss="-")

    def __enter__(self) -> TrainingLog:
        """Show the bar."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def step(self, progress: checkpoints.Progress, loss: Tensor) -> None:
        """Note a step; every 50 steps their mean loss is written down."""
        self._losses.append(loss)
        spent = sum(phase.minutes for phase in self.phases[: progress.phase]) * 60 + progress.seconds
        name = self.phases[progress.phase].name
        self._bar.update(self._task, completed=spent, phase=name, step=progress.step)
        if len(self._losses) >= _EVERY:
            mean = sum(float(value) for value in self._losses) / len(self._losses)
            self._losses.clear()
            self._bar.update(self._task, loss=f"{mean:.3f}")
            self._write(progress, loss=round(mean, 4))

    def test(self, progress: checkpoints.Progress, accuracy: Mapping[str, float]) -> None:
        """Note the accuracy on held-out pictures."""
        shown = ", ".join(f"{name} {value:.2f}" for name, value in accuracy.items())
        self._bar.console.print(f"step {progress.step}, held out: {shown}")
        self._write(progress, held_out={name: round(value, 4) for name, value in accuracy.items()})

    def _write(self, progress: checkpoints.Progress, **values: Any) -> None:
        place = {"phase": self.phases[progress.phase].name, "step": progress.step, "seconds": round(progress.seconds)}
        with self.file.open("a") as lines:
            lines.write(json.dumps(place | values) + "\n")
