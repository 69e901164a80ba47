"""`vtprune methods`: the catalogue, or one method."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vtprune.cli.common import AsJson, app


@app.command("methods")
def list_methods(
    pattern: Annotated[str, typer.Argument(help="Only names that match this wildcard pattern; or a name.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List all methods: what kind they are, where they act and work, and their papers. Of one, say everything."""
    import vtprune

    found = vtprune.methods(pattern)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")
        return
    console = Console(highlight=False)
    if len(found) == 1 and found[0]["name"] == pattern:
        _show(found[0], console)
        return
    table = Table()
    for head in ("name", "kind", "places", "families", "parameters", "paper"):
        table.add_column(head)
    for one in found:
        parameters = ", ".join(f"{k}={v}" for k, v in one["parameters"].items())
        table.add_row(
            one["name"], one["kind"], "\n".join(one["places"]), ", ".join(one["families"]), parameters, one["paper"]
        )
    console.print(table)


def _show(method: dict[str, Any], console: Console) -> None:
    """One method, in full."""
    from vtprune.describe import describe_lines

    console.print(f"{method['name']}: {method['does']}", markup=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, said in describe_lines(method):
        table.add_row(name, said)
    console.print(table)
    parameters = Table("parameter", "default", "one of", "")
    for name, default in method["parameters"].items():
        allowed = ", ".join(map(repr, method["choices"].get(name, ())))
        parameters.add_row(name, repr(default), allowed, method["about_parameters"].get(name, ""))
    console.print(parameters)
