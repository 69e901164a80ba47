"""The command line."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    name="vtprune",
    help="Make Hugging Face vision-language models faster by spending fewer visual tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INPUT_ERRORS = (ValueError, TypeError, FileNotFoundError, IsADirectoryError, PermissionError)


def main() -> None:
    """Entry point of the `vtprune` command."""
    app()


def _fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(f"error: {message}", markup=False, soft_wrap=True)
    raise typer.Exit(2)


@contextmanager
def _input_errors() -> Iterator[None]:
    """Turn errors about what the user wrote into one line and exit code 2."""
    try:
        yield
    except INPUT_ERRORS as error:
        _fail(str(error) or type(error).__name__)


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


def _parse_keep(text: str | None) -> float | int | None:
    """`0.25` is a ratio, `64` a number of tokens."""
    if text is None:
        return None
    from vtprune.budget import check_keep

    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        with _input_errors():
            return check_keep(value)
    _fail(f"keep must be a ratio in (0, 1] or a whole number of tokens >= 1, got {text!r}; for 25 percent write 0.25.")


def _parse_settings(settings: list[str]) -> dict[str, Any]:
    from vtprune.methods.parse import parse_parameter

    parameters: dict[str, Any] = {}
    with _input_errors():
        for name, value in map(parse_parameter, settings):
            if name in parameters:
                raise ValueError(f"parameter {name!r} is set twice.")
            parameters[name] = value
    return parameters


@app.command()
def run(
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", help="Picture; repeat for several. Default: a shipped example."),
    ] = None,
    video: Annotated[
        list[Path] | None, typer.Option("--video", help="Video clip, for families that take videos; may repeat.")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames", help="Frames of each clip, evenly spaced. Default: 32, or as --fps says; at most all."
        ),
    ] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Frames per second of each clip; with --frames, at most that many.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Question about picture or clip. Default: the example's.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A shipped model, a folder, or a Hub id (owner/name).")
    ] = "tiny-llava",
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="Method, name or name:param=value,...; repeat to chain. Default: divprune."),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep", "-k", help="Budget: 0.25 keeps a quarter, 64 keeps 64 tokens per picture or clip. Default: 0.25."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Parameter of the single method, name=value; may repeat.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Length of the answer, in tokens.")
    ] = 64,
    overlay: Annotated[
        Path | None, typer.Option("--overlay", "-o", help="Write a picture of the kept tokens to this PNG file.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")] = "auto",
    attention: Annotated[
        str | None, typer.Option("--attn", help="Attention implementation: sdpa, eager, flash_attention_2, ...")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Answer a question about a picture or a video without and with pruning, side by side.

    Time to first token: median over five calls of generate with max_new_tokens=1, without and with the methods in
    alternation, after a warm-up and with the device synchronised. It covers the vision encoder and the prefill, not
    reading and preparing the picture or video.
    """
    budget, parameters = _parse_keep(keep), _parse_settings(setting or [])
    if video is None and (frames is not None or fps is not None):
        _fail("--frames and --fps are about --video, which is missing.")
    methods = method or ["divprune"]
    if method is None and keep is None and "keep" not in parameters:
        budget = 0.25
    if overlay is not None:
        _check_writable(overlay)
    from vtprune.images import load_image
    from vtprune.models import load_model, shipped_example
    from vtprune.videos import Video, load_video

    with _input_errors():
        if not image and not video:
            path, question = shipped_example()
            image, prompt = [path], prompt or question
        if prompt is None:
            raise ValueError("--prompt is missing: what is to be asked about the picture or video?")
        images = [load_image(path) for path in image or []]
        try:
            videos = [load_video(path, frames=frames, fps=fps) for path in video or []]
        except ImportError as error:
            _fail(str(error))
        from vtprune.api import build_chain

        chain = build_chain(methods if len(methods) > 1 else methods[0], budget, parameters)
        with _quiet(as_json):
            loaded = load_model(
                model, device=device, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code
            )
        import vtprune
        from vtprune.run import compare, make_inputs

        with vtprune.applied(loaded.model, chain):
            pass
        make_inputs(loaded, images, prompt, videos)
    # From here on an error is a fault of ours, and keeps its traceback.
    with _quiet(as_json):
        result = compare(loaded, images, prompt, chain, max_new_tokens=max_new_tokens, videos=videos)
    if overlay is not None:
        from vtprune.inputs import in_prompt_order
        from vtprune.overlay import draw_overlays
        from vtprune.run import seen_region

        shown = in_prompt_order(loaded.processor, prompt, images, videos)
        regions = [seen_region(loaded.processor, one.size, video=isinstance(one, Video)) for one in shown]
        sheet = draw_overlays(shown, result.report.pictures, " + ".join(result.report.methods), regions)
        try:
            overlay.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(overlay, format="PNG")
        except OSError as error:
            _fail(f"--overlay {str(overlay)!r} cannot be written: {error.strerror or error}.")
    if as_json:
        document = {**result.to_dict(), "model": model}
        if videos:
            document["videos"] = [
                {"file": str(path), **clip.to_dict()} for path, clip in zip(video or [], videos, strict=True)
            ]
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    console = Console(highlight=False)
    console.print(f"question: {prompt}", markup=False)
    for path, clip in zip(video or [], videos, strict=True):
        frames_taken = f"{len(clip.frames)} of {clip.total_frames} frames"
        console.print(f"video: {path.name}, {frames_taken}, {clip.duration:.1f} s", markup=False, soft_wrap=True)
    console.print(_comparison_table(result))
    for note in result.to_dict()["notes"]:
        console.print(f"note: {note}", markup=False)
    if overlay is not None:
        console.print(f"kept tokens drawn in {overlay}", markup=False, soft_wrap=True)


def _check_writable(path: Path) -> None:
    """Say so before the model runs if the overlay could not be written in the end; leaves nothing behind."""
    if path.suffix.lower() != ".png":
        _fail(f"--overlay {str(path)!r} must be the name of a PNG file, as in kept.png.")
    try:
        if path.is_dir():
            _fail(f"--overlay {str(path)!r} is a folder; give the name of a PNG file.")
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
        _fail(f"--overlay {str(path)!r} cannot be written: {getattr(error, 'strerror', None) or error}.")


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Keep progress bars and notices of other libraries from a run whose output a script reads."""
    if not quiet:
        yield
        return
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with redirect_stdout(sys.stderr):
        yield


def _comparison_table(result: Any) -> Table:
    report = result.report
    table = Table(title=f"without and with {' + '.join(report.methods)}", title_justify="left")
    table.add_column("")
    for head in ("unpruned", "pruned", "pruned / unpruned"):
        table.add_column(head, justify="right")
    table.add_row("answer", result.baseline_answer, result.answer, "")
    rows = [
        ("visual tokens", report.visual_tokens_before, report.visual_tokens_after, "{:,}"),
        ("prefill FLOPs", report.prefill_flops_before / 1e9, report.prefill_flops_after / 1e9, "{:,.3f} G"),
        ("KV cache", (report.kv_bytes_before or 0) / 1024, (report.kv_bytes_after or 0) / 1024, "{:,.0f} KiB"),
        ("time to first token", result.baseline_ttft_ms, result.ttft_ms, "{:,.1f} ms"),
    ]
    for name, before, after, form in rows:
        share = f"{after / before:.0%}" if before else ""
        table.add_row(name, form.format(before), form.format(after), share)
    return table


@app.command("methods")
def list_methods(
    pattern: Annotated[str, typer.Argument(help="Only names that match this wildcard pattern.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """List all methods: what kind they are, where they act, what they need, and their papers."""
    import vtprune

    found = vtprune.methods(pattern)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")
        return
    table = Table()
    for head in ("name", "kind", "places", "families", "parameters", "paper"):
        table.add_column(head)
    for one in found:
        parameters = ", ".join(f"{k}={v}" for k, v in one["parameters"].items())
        table.add_row(
            one["name"], one["kind"], "\n".join(one["places"]), ", ".join(one["families"]), parameters, one["paper"]
        )
    Console(highlight=False).print(table)


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
        _fail(f"unknown recipe {name!r}; there are {', '.join(names)}.")
    with _input_errors():
        if name == "tiny-llava":
            train_tiny_llava.train(out, resume=resume, minutes=minutes)
        else:
            train_family.train_family(name, out, resume=resume, minutes=minutes)


if __name__ == "__main__":
    main()
