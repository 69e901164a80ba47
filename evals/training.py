"""The training loop of tiny-llava: phases one after the other, each for its time, stoppable and resumable anywhere."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from vtprune.evals.checkpoints import Progress, load_checkpoint, save_checkpoint
from vtprune.evals.dense import Item, foreground_first, make_item
from vtprune.evals.held_out import held_out_accuracy
from vtprune.evals.losses import total_loss
from vtprune.evals.optimizers import build_optimizers, gathered, restore, set_rate, trained
from vtprune.evals.phases import Phase
from vtprune.evals.tiny_llava import VISUAL_TOKENS
from vtprune.evals.training_log import TrainingLog

FIRST_SEED = 10_000_000
_SECONDS_BETWEEN_TESTS = 240.0
_LONGEST_GRADIENT = 1.0


class Pictures(IterableDataset[Item]):
    """Endless pictures with questions, one per seed.

    Args:
        first_seed: Seed of the first picture.
        phase: Says how many questions and characters there are.
    """

    def __init__(self, first_seed: int, phase: Phase) -> None:
        self.first_seed, self.phase = first_seed, phase

    def __iter__(self) -> Iterator[Item]:
        """The items of one seed after the other."""
        seed = self.first_seed
        while True:
            phase = self.phase
            yield make_item(seed, characters=phase.characters, questions=phase.questions, shares=phase.shares)
            seed += 1


class Trainer:
    """A run over phases.

    Args:
        student: The model with its heads; trained in place.
        phases: The recipe.
        folder: Checkpoints go into its folder "checkpoints", the log into "log.jsonl".
        workers: Processes that draw pictures; 0 draws them in this one.
        clock: Time in seconds, from any start.

    Raises:
        ValueError: If it runs in several processes; the model is small enough for one.
    """

    def __init__(
        self,
        student: nn.Module,
        phases: Sequence[Phase],
        folder: Path,
        *,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.accelerator = Accelerator(mixed_precision="bf16")
        if self.accelerator.num_processes > 1:
            raise ValueError(f"training runs in one process, got {self.accelerator.num_processes}")
        self.student: Any = self.accelerator.prepare(student)
        self.phases, self.folder, self.workers, self.clock = tuple(phases), folder, workers, clock
        self.progress = Progress()
        self.optimizers: list[Optimizer] = []
        self._held: dict[str, Tensor] = {}

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint."""
        self._held, self.progress = load_checkpoint(checkpoint, self.student)

    def save(self) -> None:
        """Save a checkpoint."""
        save_checkpoint(self.folder / "checkpoints", self.student, self._gathered(), self.progress)

    def run(self, steps: int | None = None) -> bool:
        """Train to the end, or for so many steps. Returns whether the end is reached; a checkpoint is saved anyway."""
        last = None if steps is None else self.progress.steps + steps
        with TrainingLog(self.folder / "log.jsonl", self.phases) as log:
            while self.progress.phase < len(self.phases):
                if not self._run_phase(self.phases[self.progress.phase], last, log):
                    return False
        return True

    def _run_phase(self, phase: Phase, last: int | None, log: TrainingLog) -> bool:
        """Train to the end of the phase, or until `last` steps are made in all; returns whether it is the end."""
        fresh = self.progress.step == 0 and not phase.goes_on
        held = {} if fresh else self._gathered()
        self.optimizers = build_optimizers(self.student, phase)
        restore(self.optimizers, self.student, held)
        seconds = phase.minutes * 60
        batches = self._batches(phase)
        tested = now = self.clock()
        while self.progress.seconds < seconds and self.progress.steps != last:
            loss = self._step(phase, next(batches))
            before, now = now, self.clock()
            self.progress = dataclasses.replace(
                self.progress,
                step=self.progress.step + 1,
                steps=self.progress.steps + 1,
                pictures=self.progress.pictures + phase.pictures,
                seconds=self.progress.seconds + now - before,
            )
            log.step(self.progress, loss)
            if now - tested >= _SECONDS_BETWEEN_TESTS:
                self._test(phase, log)
                self.save()
                tested = now = self.clock()
        done = self.progress.seconds >= seconds
        if done:
            self._test(phase, log)
            self.progress = dataclasses.replace(self.progress, phase=self.progress.phase + 1, step=0, seconds=0.0)
        self.save()
        return done

    def _step(self, phase: Phase, batch: Any) -> Tensor:
        """One step; returns the loss to watch."""
        kept = None
        if phase.questions and phase.visual_tokens < VISUAL_TOKENS:
            # Seeded by the place in the run, so that a resumed run draws the same.
            generator = torch.Generator().manual_seed(self.progress.pictures)
            kept = foreground_first(batch.targets, phase.visual_tokens, generator)
        loss, watched = total_loss(self.student(batch, kept), batch, phase)
        self._follow(phase, loss)
        return watched

    def _follow(self, phase: Phase, loss: Tensor) -> None:
        """Take the step that lowers a loss."""
        set_rate(self.optimizers, phase.rate(self.progress.step, self.progress.seconds / (phase.minutes * 60)))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(trained(self.optimizers), _LONGEST_GRADIENT)
        for optimizer in self.optimizers:
            optimizer.step()

    def _batches(self, phase: Phase) -> Iterator[Any]:
        loader = DataLoader(
            Pictures(FIRST_SEED + self.progress.pictures, phase),
            batch_size=phase.pictures,
            num_workers=self.workers,
            prefetch_factor=8 if self.workers else None,
        )
        for batch in loader:
            yield send_to_device(batch, self.accelerator.device)

    def _test(self, phase: Phase, log: TrainingLog) -> None:
        log.test(self.progress, held_out_accuracy(self.student, self.accelerator.device, questions=phase.questions))

    def _gathered(self) -> dict[str, Tensor]:
        return gathered(self.optimizers, self.student) if self.optimizers else self._held
