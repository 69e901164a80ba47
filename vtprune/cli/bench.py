"""`vtprune bench`: a method beside the untouched model and its ideal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vtprune.cli.common import (
    AsJson,
    Attention,
    Device,
    Dtype,
    TrustRemoteCode,
    app,
    check_writable,
    fail,
    input_errors,
    parse_keep,
    parse_settings,
    quietly,
)


@app.command()
def bench(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A shipped model, a folder, a Hub id, or random:NAME[@small].")
    ] = "random:llava-1.5-7b@small",
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Method, name or name:param=value,...; a chain is joined, tome+fastv:layer=2. Repeat to chain, with "
            "--sweep for one point each.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep", "-k", help="Budget: a ratio or a number of tokens; several with --sweep. Default: 0.25."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Parameter of the single method, name=value; may repeat.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="Picture; may repeat. Default: a shipped example.")
    ] = None,
    video: Annotated[list[Path] | None, typer.Option("--video", help="Video clip; may repeat.")] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Question.")] = "What is shown here?",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="The same prompt so many times.")] = 1,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Tokens to decode; 1 for none.")] = 32,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed requests of each arm.")] = 10,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Rounds before them that do not count.")] = 2,
    sweep: Annotated[bool, typer.Option("--sweep", help="All methods times all budgets; needs --out.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in --out.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the JSON document here; of a sweep a CSV, and beside it a JSON and a PNG."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Time the untouched model, a method, and its ideal: the bare model that is given just the tokens it keeps.

    All in alternation in one run: medians and quartiles. speedup = untouched / method, overhead = method / ideal; the
    aim is an overhead of 1.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts memory, is talkative
    methods = method or ["fastervlm"]
    keeps = [parse_keep(one) for one in keep or []]
    parameters = parse_settings(setting or [])
    if not sweep:
        if len(keeps) > 1:
            fail("several --keep are for --sweep.")
        if resume:
            fail("--resume is for --sweep.")
    elif out is None:
        fail("--sweep needs --out, the CSV file to write.")
    elif parameters:
        fail("--set is for one method; with --sweep write parameters with their method, as in fastv:layer=2.")
    if out is not None:
        check_writable(out, "--out", ".csv" if sweep else ".json")
    if not keeps and "keep" not in parameters and (sweep or method is None):
        keeps = [0.25]
    from vtprune.api import build_chain
    from vtprune.bench.measuring import Settings
    from vtprune.bench.plot import check_matplotlib
    from vtprune.bench.sweep import Table, points

    with input_errors():
        settings = Settings(new_tokens, repeats, warmup)
        if sweep and out is not None:
            chains = points(methods, [x for x in keeps if x is not None])
            check_matplotlib()
        else:
            budget = keeps[0] if keeps else None
            label = " + ".join(methods)
            chain = build_chain(methods if len(methods) > 1 else methods[0], budget, parameters)
            chains = {label: {budget: chain}}
        loaded, inputs = _prepare(
            model, device, dtype, attention, trust_remote_code, as_json, image or [], video or [], prompt, batch_size
        )
        import vtprune

        for by_keep in chains.values():
            for one in by_keep.values():
                with vtprune.applied(loaded.model, one):
                    pass  # what a method says against the model is said before anything is measured
        from vtprune.bench.machine import describe_machine, machine_line
        from vtprune.bench.request import fingerprint

        machine = describe_machine(loaded.model.device)
        about = {
            "model": model,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "attention": loaded.model.config.get_text_config()._attn_implementation,
            "batch_size": batch_size,
            "prompt_slots": inputs["input_ids"].shape[1],
            "inputs": fingerprint(inputs),
            "new_tokens": new_tokens,
            "repeats": repeats,
            "warmup": warmup,
            "machine": machine_line(machine),
        }
        table = Table(out, about, resume) if sweep and out is not None else None
    if table is not None:
        _run_sweep(loaded.model, inputs, chains, settings, table, as_json)
        return
    from vtprune.bench.measuring import measure
    from vtprune.bench.result import to_dict
    from vtprune.bench.table import in_words, outcome_table

    with quietly(as_json), _progress() as progress:
        (outcome,) = measure(loaded.model, inputs, {label: chain}, settings, progress)
    document = {**to_dict(outcome), "keep": budget, **about, "machine": machine}
    text = json.dumps(document, indent=2) + "\n"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    if as_json:
        sys.stdout.write(text)
        return
    console = Console(highlight=False)
    console.print(outcome_table(outcome))
    for line in (*in_words(outcome), *(f"warning: {x}" for x in outcome.warnings()), *outcome.report.notes):
        console.print(line, markup=False)
    console.print(machine_line(machine), markup=False, style="dim")


def _prepare(
    model: str,
    device: str,
    dtype: str,
    attention: str | None,
    trust_remote_code: bool,
    quiet: bool,
    images: list[Path],
    videos: list[Path],
    prompt: str,
    batch_size: int,
) -> tuple[Any, Any]:
    """The model and the inputs that are timed."""
    from vtprune.bench.request import repeat_inputs
    from vtprune.images import load_image
    from vtprune.inputs import make_inputs
    from vtprune.models import load_model, shipped_example
    from vtprune.videos import load_video

    if not images and not videos:
        images = [shipped_example()[0]]
    pictures = [load_image(path) for path in images]
    try:
        clips = [load_video(path) for path in videos]
    except ImportError as error:
        fail(str(error))
    with quietly(quiet):
        loaded = load_model(model, device=device, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
    return loaded, repeat_inputs(make_inputs(loaded, pictures, prompt, clips), batch_size)


def _run_sweep(model: Any, inputs: Any, chains: Any, settings: Any, table: Any, as_json: bool) -> None:
    from vtprune.bench.plot import draw_sweep
    from vtprune.bench.sweep import sweep
    from vtprune.bench.table import sweep_table

    try:
        with quietly(as_json), _progress() as progress:
            sweep(model, inputs, chains, settings, table, progress)
    except KeyboardInterrupt:
        say = f"{len(table.documents)} points are in {table.path}; --resume goes on."
        Console(stderr=True, highlight=False).print(f"interrupted: {say}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    plot = table.path.with_suffix(".png")
    draw_sweep(table.documents, plot, f"{table.about['model']}, {table.about['dtype']}, {table.about['machine']}")
    if as_json:
        sys.stdout.write(json.dumps({"about": table.about, "points": table.documents}, indent=2) + "\n")
        return
    console = Console(highlight=False)
    console.print(sweep_table(table.rows()))
    for document in table.documents:
        for warning in document["warnings"]:
            console.print(f"warning: {document['method']}: {warning}", markup=False)
    console.print(f"written: {table.path}, {table.json.name}, {plot.name}", markup=False, soft_wrap=True)
    console.print(table.about["machine"], markup=False, style="dim")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on stderr; nothing where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("requests timed"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
