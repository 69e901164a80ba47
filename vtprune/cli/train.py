"""`vtprune train`: the recipes of the shipped models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtprune.cli.common import app, fail, input_errors


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", help="Folder for checkpoints and the finished model.")],
    name: Annotated[str, typer.Argument(help="Which model's recipe to run.")] = "tiny-llava",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Scale the recipe's phases to this much time in all.")
    ] = None,
) -> None:
    """Train a shipped tiny model: tiny-llava from random weights, the others from tiny-llava."""
    from vtprune.evals import train_family, train_tiny_llava

    names = ("tiny-llava", *train_family.RECIPES)
    if name not in names:
        fail(f"unknown recipe {name!r}; there are {', '.join(names)}.")
    with input_errors():
        if name == "tiny-llava":
            train_tiny_llava.train(out, resume=resume, minutes=minutes)
        else:
            train_family.train_family(name, out, resume=resume, minutes=minutes)
