"""What the commands share: the application, how options are read, and how bad input is told."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

app = typer.Typer(
    name="vtprune",
    help="Make Hugging Face vision-language models faster by spending fewer visual tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Options that several commands have.
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Attention = Annotated[
    str | None, typer.Option("--attn", help="Attention implementation: sdpa, eager, flash_attention_2, ...")
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]

_EXAMPLES = {".png": "kept.png", ".json": "bench.json", ".csv": "sweep.csv", ".html": "report.html"}
INPUT_ERRORS = (ValueError, TypeError, FileNotFoundError, IsADirectoryError, PermissionError)


def fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"error: {message}", markup=False, soft_wrap=True)
    raise typer.Exit(2)


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn errors about what the user wrote into one line and exit code 2."""
    try:
        yield
    except INPUT_ERRORS as error:
        fail(str(error) or type(error).__name__)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("vtprune"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that come before a command."""


def parse_keep(text: str | None) -> float | int | None:
    """`0.25` is a ratio, `64` a number of tokens."""
    if text is None:
        return None
    from vtprune.budget import check_keep

    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        with input_errors():
            return check_keep(value)
    fail(f"keep must be a ratio in (0, 1] or a whole number of tokens >= 1, got {text!r}; for 25 percent write 0.25.")


def parse_settings(settings: list[str]) -> dict[str, Any]:
    from vtprune.methods.parse import parse_parameter

    parameters: dict[str, Any] = {}
    with input_errors():
        for name, value in map(parse_parameter, settings):
            if name in parameters:
                raise ValueError(f"parameter {name!r} is set twice.")
            parameters[name] = value
    return parameters


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Keep progress bars and notices of other libraries from a run whose output a script reads."""
    if not quiet:
        yield
        return
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with redirect_stdout(sys.stderr):
        yield


def check_extras() -> None:
    """Say so early if what evaluations and their pages need is not installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        fail(f"evaluations need {error.name}, which is not installed: pip install 'vtprune[eval]'.")


def check_writable(path: Path, option: str, kind: str) -> None:
    """Say so before the model runs if a file could not be written in the end; leaves nothing behind.

    Args:
        path: The file.
        option: By which it was given.
        kind: What its name must end with, as in ".png".
    """
    if path.suffix.lower() != kind:
        what = kind[1:].upper()
        fail(f"{option} {str(path)!r} must be the name of a {what} file, as in {_EXAMPLES[kind]}.")
    try:
        if path.is_dir():
            fail(f"{option} {str(path)!r} is a folder; give the name of a {kind[1:].upper()} file.")
        folder = path.parent
        while not folder.exists():
            folder = folder.parent
        # Trying is the only sure way: permission bits say nothing to root, nor on a file system mounted read-only.
        if path.exists():
            path.open("ab").close()
        else:
            with tempfile.TemporaryFile(dir=folder):
                pass
    except (OSError, ValueError) as error:
        fail(f"{option} {str(path)!r} cannot be written: {getattr(error, 'strerror', None) or error}.")
