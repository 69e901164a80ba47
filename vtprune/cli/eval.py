"""`vtprune eval`: what methods cost in quality, and what they save."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
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
    check_extras,
    fail,
    input_errors,
    parse_keep,
    quietly,
)
from vtprune.cli.many import ManyValues

NO_METHOD = "none"


@app.command("eval", cls=ManyValues)
def evaluate(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A shipped model, a folder, a Hub id (owner/name), or random:NAME.")
    ] = "tiny-llava",
    suite: Annotated[
        str | None,
        typer.Option("--suite", help="scenes (default), clips, or a public benchmark: see --list-suites."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Questions of your own, a JSONL file (docs/evaluation-data.md).")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Folder of downloaded benchmarks. Default: $VTPRUNE_DATA, or in the cache."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Method or chain (tome+fastv:layer=2,keep=0.5); several are compared. Default: divprune. "
            "none: the unpruned model alone.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", "-k", help="Budgets, 0.25 or 64; each method is run at each. Default: 0.25."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="How answers are judged. Default: as suits the questions.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Number of questions. Default: 300 of a suite, else all.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which test set of a suite; of all that is drawn.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions per call of the model.")] = 8,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Length of the answer, in tokens.")
    ] = 64,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Frames of each video of a file.")] = None,
    fps: Annotated[float | None, typer.Option("--fps", help="Frames per second of each video of a file.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run. Default: one in runs/, by the settings.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on.")] = False,
    pictures: Annotated[
        int, typer.Option("--pictures", min=0, help="Overlays of changed answers, per configuration.")
    ] = 12,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Go on without the lines of --data that cannot be read.")
    ] = False,
    device: Device = "auto",
    device_map: Annotated[
        str | None, typer.Option("--device-map", help="auto spreads a model over all GPUs of a machine.")
    ] = None,
    dtype: Dtype = "auto",
    attention: Attention = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
    list_suites: Annotated[bool, typer.Option("--list-suites", help="Say what can be asked, and end.")] = False,
) -> None:
    """Ask questions without and with methods, and say what they cost in quality and what they save.

    Every method is run at every budget, on the same questions as the unpruned model. All answers, figures with
    intervals, plots and a page (report.html) are kept in one folder; a run that was interrupted goes on when the same
    command is given again. Started by `accelerate launch`, processes share the questions.
    """
    if list_suites:
        _list_suites()
        return
    if suite is not None and data is not None:
        fail("--suite and --data are two sources of questions; give one of them.")
    budgets = [budget for text in keep or [] for word in text.split(",") if (budget := parse_keep(word)) is not None]
    methods = [one for one in method or ["divprune"] if one != NO_METHOD]
    if method is None and keep is None:
        budgets = [0.25]
    check_extras()
    with input_errors():
        from vtprune.evals.metrics import get_metric
        from vtprune.evals.runner.configurations import plan
        from vtprune.evals.runner.processes import Processes

        if metric is not None:
            get_metric(metric)
        configurations = plan(methods, budgets)
        questions = _questions(suite, data, data_dir, metric, limit, seed, frames, fps, skip_malformed)
        from vtprune.evals.runner.evaluate import evaluate as run
        from vtprune.models import load_model

        processes = Processes(device)
        quiet = as_json or not processes.first
        with quietly(quiet):
            loaded = load_model(
                model,
                device=processes.device(device),
                device_map=device_map,
                dtype=dtype,
                attention=attention,
                trust_remote_code=trust_remote_code,
            )
        _check_videos(loaded, questions)
        for line in questions.malformed if processes.first else ():
            Console(stderr=True, highlight=False).print(f"left out: {line}", markup=False, soft_wrap=True)
        names = [one.name for one in configurations]
        folder = out or _default_folder(model, questions, [names, metric, dtype, attention, batch_size, max_new_tokens])
        from vtprune.cli.progress import Progress

        progress = Progress(len(configurations), shown=processes.first)
        try:
            with quietly(quiet), progress:
                summary = run(
                    loaded,
                    questions,
                    configurations,
                    folder,
                    metric=metric,
                    batch_size=batch_size,
                    max_new_tokens=max_new_tokens,
                    seed=seed,
                    pictures=pictures,
                    fresh=fresh,
                    command=shlex.join(["vtprune", *sys.argv[1:]]),
                    processes=processes,
                    on_start=progress.start,
                    on_batch=progress.step,
                )
        except KeyboardInterrupt:
            say = f"interrupted; answers so far are in {folder}, and the same command goes on."
            Console(stderr=True, highlight=False).print(say, markup=False, soft_wrap=True)
            raise typer.Exit(130) from None
        finally:
            processes.end()
    if not processes.first:
        return
    if as_json:
        sys.stdout.write(json.dumps(document(summary, folder), indent=2) + "\n")
    else:
        _show(summary, folder)
    if not any(figures["answered"] for figures in summary["configurations"]):
        fail(f"every question failed; the first error: {summary['errors'][0]['error']}")


def document(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The JSON of a run: its summary, and at the top the figures of the one configuration that it is about.

    With several methods or budgets there is no such one, and `configurations` holds them all.
    """
    configurations = summary["configurations"]
    about = configurations[-1] if len(configurations) <= 2 else {}
    return {**about, **summary, "folder": str(folder)}


def _questions(
    suite: str | None,
    data: Path | None,
    data_dir: Path | None,
    metric: str | None,
    limit: int | None,
    seed: int,
    frames: int | None,
    fps: float | None,
    skip_malformed: bool,
) -> Any:
    if data is not None:
        from vtprune.evals.data.jsonl import read_jsonl

        return read_jsonl(data, metric=metric, limit=limit, frames=frames, fps=fps, skip_malformed=skip_malformed)
    from vtprune.evals.data.benchmarks import BENCHMARKS, read_benchmark
    from vtprune.evals.data.suites import SUITES, read_suite

    name = suite or "scenes"
    if name in BENCHMARKS:
        return read_benchmark(name, folder=data_dir, limit=limit, frames=frames, fps=fps)
    if name not in SUITES:
        raise ValueError(f"suite must be one of {', '.join((*SUITES, *BENCHMARKS))}, got {name!r}.")
    if frames is not None or fps is not None:
        raise ValueError("--frames and --fps are about videos in files; the clips of a suite have their own frames.")
    return read_suite(name, limit=limit, seed=seed)


def _list_suites() -> None:
    from vtprune.evals.data.benchmarks import BENCHMARKS
    from vtprune.evals.data.suites import SUITES

    typer.echo(f"drawn on the fly: {', '.join(SUITES)}\npublic benchmarks: {', '.join(BENCHMARKS)}")


def _check_videos(loaded: Any, questions: Any) -> None:
    from vtprune.inputs import takes_videos

    shown = {medium.kind for one in questions.samples for medium in one.media}
    if "video" in shown and not takes_videos(loaded.processor):
        raise ValueError(f"model {loaded.name!r} takes no videos; {questions.name!r} asks about videos.")


def _default_folder(model: str, questions: Any, settings: Sequence[Any]) -> Path:
    """The same for the same command, so that it goes on where it stopped."""
    told = json.dumps([model, questions.source, *settings], sort_keys=True, default=str)
    name = Path(model).name.replace(":", "-")
    return Path("runs") / f"{questions.name}-{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _show(summary: dict[str, Any], folder: Path) -> None:
    from vtprune.cli.summary_table import summary_table

    console = Console(highlight=False)
    console.print(summary_table(summary))
    if summary["failed"]:
        first = summary["errors"][0]
        say = f"{summary['failed']} of {summary['n']} questions failed; {first['id']}: {first['error']}"
        console.print(say, markup=False, soft_wrap=True)
    console.print(f"page: {folder / 'report.html'}", markup=False, soft_wrap=True)
