"""How far an evaluation is, and how long it will take: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import datetime
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from vtprune.evals.runner.batches import Batch

EVERY = 30.0  # seconds between lines of a log


class Progress:
    """Counts questions.

    Args:
        configurations: Under how many each is asked.
        shown: Whether anything is printed; it goes to stderr.
    """

    def __init__(self, configurations: int, shown: bool = True) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.shown, self.configurations = shown, configurations
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self._bar = Bar(
            *columns, console=self.console, transient=True, disable=not (shown and self.console.is_terminal)
        )
        self._task = self._bar.add_task("questions", total=None)
        self._todo = self._done = 0
        self._began = self._told = 0.0

    def __enter__(self) -> Progress:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it away."""
        self._bar.stop()

    def start(self, todo: int, done: int) -> None:
        """So many questions are to be asked; so many others are known, or are other processes'."""
        self._todo, self._began = todo, time.monotonic()
        self._told = self._began
        self._bar.update(self._task, total=todo)
        others = f"; {done} more are known already, or other processes'" if done else ""
        self._say(f"questions to ask: {todo}, under {self.configurations} configurations{others}.")

    def step(self, batch: Batch) -> None:
        """A batch was answered."""
        self._done += len(batch.indices)
        self._bar.update(self._task, advance=len(batch.indices))
        now = time.monotonic()
        if now - self._told >= EVERY:
            self._told = now
            left = (now - self._began) / self._done * (self._todo - self._done)
            self._say(f"{self._done} of {self._todo} questions; {datetime.timedelta(seconds=round(left))} left.")

    def _say(self, text: str) -> None:
        if self.shown and not self.console.is_terminal:
            self.console.print(text, markup=False, soft_wrap=True)
