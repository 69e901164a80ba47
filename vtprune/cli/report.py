"""`vtprune report`: the page of a run, or of several side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from vtprune.cli.common import AsJson, app, check_extras, check_writable, input_errors

_NAME = 22
_LEFT_OUT = ("same answer", "prefill FLOPs", "KV cache", "KL, nats")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that vtprune eval wrote.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page. Default: DIR/report.html; of several runs comparison.html."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the page of a run anew, or compare several.

    Runs of one model on the same questions stand together, with paired differences to the first of them; others have
    sections of their own.
    """
    check_extras()
    if out is not None:
        check_writable(out, "--out", ".html")
    if len(runs) == 1:
        _one(runs[0], out, as_json)
    else:
        _several(runs, out or Path("comparison.html"), as_json)


def _one(folder: Path, out: Path | None, as_json: bool) -> None:
    from vtprune.cli.summary_table import summary_table
    from vtprune.evals.pages.report import write_report
    from vtprune.evals.pages.runs import read_run

    with input_errors():
        run = read_run(folder)
        page = write_report(folder, out)
    if as_json:
        _json({**run.summary, "page": str(page)})
        return
    console = Console(highlight=False)
    console.print(summary_table(run.summary))
    console.print(f"page: {page}", markup=False, soft_wrap=True)


def _several(folders: list[Path], out: Path, as_json: bool) -> None:
    from vtprune.evals.pages.compare import compare
    from vtprune.evals.pages.comparison import to_dict, write_comparison
    from vtprune.evals.pages.lines import make_panel
    from vtprune.evals.pages.tables import differences, overview

    with input_errors():
        comparison = compare(folders)
        page = write_comparison(comparison, out)
    if as_json:
        _json({**to_dict(comparison), "page": str(page)})
        return
    console = Console(highlight=False)
    _warn(console, comparison.warnings)
    for section in comparison.sections:
        summary = section.runs[0][1].summary
        title = f"{summary['model']}, {summary['name']}: {summary['metric']}"
        console.print(_table(overview(section.runs, make_panel(section.runs)), title))
        _warn(console, section.warnings)
        found = differences(section)
        if found is not None:
            console.print(_table(found, f"beside {section.runs[0][0]}, on the questions of both"))
    console.print(f"page: {page}", markup=False, soft_wrap=True)


def _table(table: Any, title: str) -> RichTable:
    """A table of a page without what has no room on a terminal; intervals stand below, * marks the Pareto front."""
    drawn = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    names = [name.replace(": ", ":\n", 1) for name, _ in table.rows]
    longest = max(len(part) for name in names for part in name.split("\n"))
    drawn.add_column("", overflow="fold", min_width=min(longest, _NAME))
    shown = [place for place, head in enumerate(table.heads) if head not in _LEFT_OUT]
    for place in shown:
        drawn.add_column(table.heads[place].replace(" ", "\n", 1), justify="right", overflow="fold")
    for name, (_, cells) in zip(names, table.rows, strict=True):
        drawn.add_row(Text(name), *(_cell(cells[place]) for place in shown))
    return drawn


def _cell(cell: Any) -> Text:
    text = f"{'*' if cell.front else ''}{cell.value}".replace(": ", ":\n", 1)
    return Text(f"{text}\n{cell.beside}" if cell.beside else text)


def _warn(console: Console, lines: tuple[str, ...]) -> None:
    for line in lines:
        console.print(f"warning: {line}", markup=False, soft_wrap=True)


def _json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
