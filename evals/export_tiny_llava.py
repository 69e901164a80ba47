"""Bare weights to a model folder: python -m vtprune.evals.export_tiny_llava --weights FILE.safetensors --out DIR."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import load_file

from vtprune.evals.export import export
from vtprune.evals.tiny_llava import new_model


def export_tiny_llava(
    weights: Annotated[Path, typer.Option(help="State dict of the model, as safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder of the exported model; replaced if it is there already.")],
) -> None:
    """Put weights into the tiny-llava architecture and save it with its processor.

    The tied output layer (lm_head.weight) may be in the file or not; all other weights have to fit exactly.
    """
    model = new_model()
    state = load_file(weights)
    tied = {"lm_head.weight"}
    problems = model.load_state_dict(state, strict=False)
    missing = sorted(set(problems.missing_keys) - tied)
    if missing or problems.unexpected_keys:
        raise ValueError(
            f"weights must fit tiny-llava, got {str(weights)!r} without {missing} and with {problems.unexpected_keys}"
        )
    export(model, out)


if __name__ == "__main__":
    typer.run(export_tiny_llava)
