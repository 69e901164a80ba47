"""Train tiny-llava from nothing: python -m vtprune.evals.train_tiny_llava --out DIR [--resume] [--minutes M]."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from transformers import LlavaForConditionalGeneration

from vtprune.evals.checkpoints import latest
from vtprune.evals.export import export
from vtprune.evals.phases import PHASES, Phase, stretched
from vtprune.evals.student import Student
from vtprune.evals.tiny_llava import new_model
from vtprune.evals.training import Trainer


def train(
    out: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    phases: Sequence[Phase] = PHASES,
    model: LlavaForConditionalGeneration | None = None,
    steps: int | None = None,
    workers: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> Path | None:
    """Train tiny-llava.

    Args:
        out: Folder of the run: "checkpoints", "log.jsonl", and at the end the exported model in "tiny-llava".
        resume: Go on from the last checkpoint in `out`; start anew if there is none yet.
        minutes: Length of the whole run; the phases are shortened or stretched alike. None: as the recipe says. Give
            the same number when resuming.
        phases: The recipe.
        model: What to start from; None starts from `new_model()`.
        steps: Stop after so many steps, with a checkpoint; None trains to the end.
        workers: Processes that draw pictures.
        clock: Time in seconds, from any start.

    Returns:
        The folder of the exported model; None if `steps` ended the training before that.

    Raises:
        ValueError: If `minutes` is not positive, or `out` holds a run and `resume` is not set.
    """
    phases = stretched(phases, minutes)
    checkpoint = latest(out / "checkpoints")
    if checkpoint is not None and not resume:
        raise ValueError(f"out must be a folder without a run, got {str(out)!r}; to go on with that run, set resume")
    student = Student((model or new_model()).train())
    trainer = Trainer(student, phases, out, workers=workers, clock=clock)
    if checkpoint is not None:
        trainer.load(checkpoint)
    if not trainer.run(steps):
        return None
    export(trainer.accelerator.unwrap_model(trainer.student).model, out / "tiny-llava")
    return out / "tiny-llava"


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    minutes: Annotated[float | None, typer.Option(help="Length of the whole run; default: as the recipe says.")] = None,
) -> None:
    """Train tiny-llava from nothing."""
    train(out, resume=resume, minutes=minutes)


if __name__ == "__main__":
    typer.run(main)
