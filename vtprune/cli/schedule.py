"""`vtprune schedule`: a schedule for the methods that let tokens leave from decoder layer to decoder layer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vtprune.cli.common import AsJson, Device, Dtype, app, check_writable, fail, input_errors, quietly
from vtprune.cli.search import progress_bar


@app.command()
def schedule(
    search: Annotated[str, typer.Argument(help="gsearch: the fewest tokens without a loss; psigmoid: at a budget.")],
    out: Annotated[Path, typer.Option("--out", help="JSON file; evaluations are kept beside it, to go on with.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A shipped model, a folder, or a Hub id (owner/name).")
    ] = "tiny-llava",
    suite: Annotated[str, typer.Option("--suite", help="What is asked about: scenes or clips.")] = "scenes",
    score: Annotated[str, typer.Option("--score", help="What ranks tokens, as in gsearch.")] = "text_queries_ahead",
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            help="What decides: likelihood (of right answers), agreement (likelihood of the model's own), accuracy.",
        ),
    ] = "likelihood",
    bound: Annotated[
        float, typer.Option("--bound", help="gsearch: by how much the metric may fall (nats per answer, or a share).")
    ] = 0.01,
    step: Annotated[float, typer.Option("--step", help="gsearch: step of the rates; 0.05 is a twentieth.")] = 0.05,
    keep: Annotated[
        float | None, typer.Option("--keep", "-k", help="psigmoid: share of the tokens that a layer sees on average.")
    ] = None,
    flops: Annotated[
        float | None, typer.Option("--flops", help="psigmoid: share of prefill FLOPs, encoder included, instead.")
    ] = None,
    evaluations: Annotated[int, typer.Option("--evaluations", min=1, help="psigmoid: how many curves to try.")] = 25,
    sampler: Annotated[
        str, typer.Option("--sampler", help="psigmoid: gp (Bayesian, needs optuna) or sobol (quasi-random).")
    ] = "gp",
    start: Annotated[
        Path | None, typer.Option("--start", help="psigmoid: a schedule, of gsearch say, to begin with.")
    ] = None,
    questions: Annotated[
        int, typer.Option("--questions", help="Calibration questions, the same for every probe.")
    ] = 96,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Questions per call.")] = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Search how many visual tokens each decoder layer needs, and write a schedule that `gsearch` applies.

    A search that was interrupted goes on when the same command is given again.
    """
    check_writable(out, "--out", ".json")
    if search not in ("gsearch", "psigmoid"):
        fail(f"the search must be gsearch or psigmoid, got {search!r}.")
    from vtprune.models import load_model

    with input_errors():
        from vtprune.evals.journal import Journal, journal_of
        from vtprune.evals.schedules import Quality, Settings, search_gsearch, search_psigmoid
        from vtprune.evals.search import about_model
        from vtprune.schedules import Schedule

        settings = Settings(suite, metric, score, questions, batch_size)  # type: ignore[arg-type]
        begin = None if start is None else Schedule.load(start)
        with quietly(as_json):
            loaded = load_model(model, device=device, dtype=dtype)
        about = about_model(loaded, model)
        quality = Quality(loaded, settings, Journal(None, {}))
        held = {**about, "machine": None, "settings": [suite, metric, score, questions, batch_size]}
        quality.journal = Journal(journal_of(out), held)
    try:
        with quietly(as_json), progress_bar() as show, input_errors():
            quality.on_probe = lambda probes, rates, value: show(f"{metric} {value:.3f}, probes", probes, None)
            if search == "gsearch":
                found = search_gsearch(quality, bound=bound, step=step, about=about)
            else:
                options: dict[str, Any] = dict(evaluations=evaluations, sampler=sampler, start=begin, about=about)
                found = search_psigmoid(quality, keep=keep, flops=flops, **options)
    except KeyboardInterrupt:
        say = f"interrupted: {len(quality.journal.found)} evaluations are kept; the same command goes on."
        Console(stderr=True, highlight=False).print(say, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    except ImportError as error:
        fail(str(error))
    found.save(out)
    if as_json:
        sys.stdout.write(json.dumps(json.loads(out.read_text()), indent=2) + "\n")
        return
    console = Console(highlight=False)
    console.print(f"{search} for {model}, {suite}, ranked by {score}", markup=False, soft_wrap=True)
    table = Table()
    for head in ("layer", "tokens"):
        table.add_column(head, justify="right")
    for layer, rate in enumerate(found.rates):
        table.add_row(str(layer), f"{rate:.1%}")
    console.print(table)
    told = found.about
    values = f"{metric} {told['value']:.4f}, unpruned {told['unpruned']:.4f}, on {questions} questions"
    spent = f"{found.mean:.1%} of the tokens on average, {told['prefill_flops']:.1%} of prefill FLOPs"
    console.print(f"{values}; {spent}", markup=False, soft_wrap=True)
    console.print(f"vtprune.apply(model, 'gsearch', schedule={str(out)!r})", markup=False, soft_wrap=True)
