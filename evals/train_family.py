"""Train tiny-internvl or tiny-qwen2.5-vl: python -m vtprune.evals.train_family NAME --out DIR [--resume]."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import LlavaForConditionalGeneration

from vtprune.evals.checkpoints import latest
from vtprune.evals.export import export
from vtprune.evals.family import Family, FamilyStudent
from vtprune.evals.family_phases import INTERNVL_PHASES, QWEN_PHASES, FamilyPhase
from vtprune.evals.family_training import FamilyTrainer
from vtprune.evals.internvl_family import InternVLFamily
from vtprune.evals.phases import stretched
from vtprune.evals.qwen_family import QwenFamily

RECIPES: dict[str, tuple[Family, tuple[FamilyPhase, ...]]] = {
    family.name: (family, phases)
    for family, phases in ((InternVLFamily(), INTERNVL_PHASES), (QwenFamily(), QWEN_PHASES))
}
"""What can be trained here, by name."""

_LLAVA = Path(__file__).parent / "models" / "tiny-llava"


def train_family(
    name: str,
    out: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    phases: Sequence[FamilyPhase] | None = None,
    model: Any = None,
    steps: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Path | None:
    """Train a model that starts from tiny-llava.

    Args:
        name: One of `RECIPES`.
        out: Folder of the run: "checkpoints", "log.jsonl", and at the end the exported model in a folder of its name.
        resume: Go on from the last checkpoint in `out`; start anew if there is none yet.
        minutes: Length of the whole run; the phases are shortened or stretched alike. None: as the recipe says. Give
            the same number when resuming.
        phases: The recipe; None for that of the model.
        model: What to start from; None starts from the shipped tiny-llava.
        steps: Stop after so many steps, with a checkpoint; None trains to the end.
        clock: Time in seconds, from any start.

    Returns:
        The folder of the exported model; None if `steps` ended the training before that.

    Raises:
        ValueError: If the name is unknown, `minutes` is not positive, or `out` holds a run and `resume` is not set.
    """
    if name not in RECIPES:
        raise ValueError(f"name must be one of {', '.join(RECIPES)}, got {name!r}")
    family, recipe = RECIPES[name]
    chosen = stretched(recipe if phases is None else phases, minutes)
    checkpoint = latest(out / "checkpoints")
    if checkpoint is not None and not resume:
        raise ValueError(f"out must be a folder without a run, got {str(out)!r}; to go on with that run, set resume")
    start = family.new_model(LlavaForConditionalGeneration.from_pretrained(_LLAVA)) if model is None else model
    trainer = FamilyTrainer(FamilyStudent(family, start.train()), chosen, out, workers=0, clock=clock)
    if checkpoint is not None:
        trainer.load(checkpoint)
    if not trainer.run(steps):
        return None
    export(trainer.accelerator.unwrap_model(trainer.student).model, out / name, family.build_processor())
    return out / name


def main(
    name: Annotated[str, typer.Argument(help="tiny-internvl or tiny-qwen2.5-vl.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    minutes: Annotated[float | None, typer.Option(help="Length of the whole run; default: as the recipe says.")] = None,
) -> None:
    """Train a tiny model that takes pictures and clips; it starts from tiny-llava."""
    train_family(name, out, resume=resume, minutes=minutes)


if __name__ == "__main__":
    typer.run(main)
