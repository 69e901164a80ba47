"""Checkpoints of a training run: tensors as safetensors, numbers as JSON, complete or not there at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is. There is no other state: pictures, questions and draws follow from these numbers.

    Attributes:
        phase: Place of the current phase.
        step: Steps made in it.
        seconds: Time spent in it.
        pictures: Pictures seen in all phases, by which the next seed is found.
        steps: Steps made in all phases.
    """

    phase: int = 0
    step: int = 0
    seconds: float = 0.0
    pictures: int = 0
    steps: int = 0


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder, None if there is none."""
    found = [path for path in folder.glob("[0-9]*") if path.is_dir() and path.name.isdigit()]
    return max(found, key=lambda path: int(path.name), default=None)


def save_checkpoint(folder: Path, module: nn.Module, gathered: Mapping[str, Tensor], progress: Progress) -> Path:
    """Save a run's state and delete older checkpoints.

    Args:
        folder: Holds the checkpoints of the run.
        module: Its weights are saved.
        gathered: What the optimizers have gathered.
        progress: How far the run is.

    Returns:
        The folder of the new checkpoint.
    """
    target = folder / f"{progress.phase:02d}{progress.steps:08d}"
    fresh = folder / f"{target.name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_model(module, str(fresh / "weights.safetensors"))
    save_file({name: value.contiguous() for name, value in gathered.items()}, fresh / "optimizers.safetensors")
    (fresh / "progress.json").write_text(json.dumps(dataclasses.asdict(progress), indent=2) + "\n")
    if target.exists():
        # Made at this very point by a run that was stopped; it holds the same.
        shutil.rmtree(target)
    fresh.rename(target)
    for path in folder.iterdir():
        if path.is_dir() and path != target:
            shutil.rmtree(path)
    return target


def load_checkpoint(checkpoint: Path, module: nn.Module) -> tuple[dict[str, Tensor], Progress]:
    """Load the weights into a module; returns what the optimizers had gathered, and how far the run was."""
    load_model(module, str(checkpoint / "weights.safetensors"))
    progress = Progress(**json.loads((checkpoint / "progress.json").read_text()))
    return load_file(checkpoint / "optimizers.safetensors"), progress
