"""`vtprune search`: the best chain of methods at a share of prefill FLOPs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vtprune.cli.common import AsJson, Device, Dtype, app, check_writable, fail, input_errors, quietly


@app.command()
def search(
    flops: Annotated[
        list[float],
        typer.Option("--flops", help="Share of the unpruned model's prefill FLOPs, 0.25 for a quarter; may repeat."),
    ],
    out: Annotated[Path, typer.Option("--out", help="JSON file; evaluations are kept beside it, to go on with.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A shipped model, a folder, or a Hub id (owner/name).")
    ] = "tiny-llava",
    suite: Annotated[str, typer.Option("--suite", help="What is asked about: scenes or clips.")] = "scenes",
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            help="What chooses: likelihood (of right answers), agreement (likelihood of the model's own), accuracy.",
        ),
    ] = "likelihood",
    calibration: Annotated[int, typer.Option("--calibration", help="Questions for choosing.")] = 192,
    held_out: Annotated[int, typer.Option("--held-out", help="Other questions, for judging.")] = 300,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Questions per call.")] = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Find the best chain of an encoder-side, a decoder and a cache method at a share of prefill FLOPs.

    FLOPs are those of encoder, projector and decoder during the prefill, over those of the unpruned model. Chains are
    chosen on calibration questions and judged on held-out ones about other pictures. A search that was interrupted goes
    on when the same command is given again.
    """
    check_writable(out, "--out", ".json")
    for share in flops:
        if not 0 < share < 1:
            fail(f"--flops must be a share in (0, 1), got {share:g}; for 25 percent write 0.25.")
    from vtprune.models import load_model

    with input_errors():
        from vtprune.evals.journal import Journal, journal_of
        from vtprune.evals.search import Search, Settings, about_model, run_search

        settings = Settings(suite, metric, calibration, held_out, batch_size)  # type: ignore[arg-type]
        with quietly(as_json):
            loaded = load_model(model, device=device, dtype=dtype)
        about = about_model(loaded, model)
        finder = Search(loaded, settings, Journal(None, {}))
        journal = finder.journal = Journal(journal_of(out), {**about, **settings.to_dict(), "machine": None})
        options = "".join(f" --flops {share:g}" for share in flops)
        chosen = {"--metric": metric, "--calibration": calibration, "--held-out": held_out, "--dtype": dtype}
        options += "".join(f" {name} {value}" for name, value in chosen.items())
        about["command"] = f"vtprune search --model {model} --suite {suite}{options}"
    try:
        with quietly(as_json), progress_bar() as show, input_errors():
            finder.progress = show
            document = run_search(finder, flops, about, out)
    except KeyboardInterrupt:
        say = f"interrupted: {len(journal.found)} evaluations are kept; the same command goes on."
        Console(stderr=True, highlight=False).print(say, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    console = Console(highlight=False)
    console.print(_table(document))
    for wanted, found in document["budgets"].items():
        if not found["reached"]:
            say = f"{float(wanted):.0%} of FLOPs: no chain reaches it; the row shows the one that needs least."
            console.print(say, markup=False, soft_wrap=True)
        outcome = found.get("best") or found.get("closest")
        if outcome is not None:
            console.print(f"{float(wanted):.0%}: {outcome['apply']}", markup=False, soft_wrap=True)
            console.print(f"     vtprune run --model {model} {outcome['arguments']}", markup=False, soft_wrap=True)
    console.print(f"written: {out}", markup=False, soft_wrap=True)


def _table(document: dict[str, Any]) -> Table:
    about = document["search"]
    sizes = f"{about['calibration']['questions']} questions to choose, {about['held_out']['questions']} others to judge"
    table = Table(title=f"{about['model']}, {about['suite']}: {sizes}", title_justify="left")
    table.add_column("FLOPs")
    table.add_column("chain", no_wrap=True)
    for head in ("needs", "cache", "right,\nchosen on", "right,\nheld out", "against\nunpruned"):
        table.add_column(head, justify="right")
    table.add_row("100%", "unpruned", *_cells(document["unpruned"]))
    for wanted, found in document["budgets"].items():
        for name in ("best", "single", "closest"):
            if name in found:
                share = f"{float(wanted):.0%}"
                head = {"best": share, "single": f"{share},\none method", "closest": f"{share},\nnot reached"}[name]
                table.add_row(head, "\n".join(found[name]["chain"]), *_cells(found[name]))
        if not {"best", "closest"} & found.keys():
            table.add_row(f"{float(wanted):.0%}", "every chain is refused")
    return table


def _cells(outcome: dict[str, Any]) -> list[str]:
    chosen, judged = outcome["calibration"], outcome["held_out"]
    (low, high), (middle, *ends) = judged["interval"], judged["against_unpruned"]
    return [
        f"{judged['share']:.1%}",
        f"{judged['kv_share']:.0%}",
        f"{chosen['accuracy']:.1%}",
        f"{judged['accuracy']:.1%}\n{100 * low:.0f} to {100 * high:.0f}",
        f"{100 * middle:+.1f}\n{100 * ends[0]:+.0f} to {100 * ends[1]:+.0f}" if outcome["chain"] else "",
    ]


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A bar for steps of named parts, on stderr; nothing where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
