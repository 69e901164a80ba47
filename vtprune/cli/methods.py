"""`vtprune methods`: the catalogue."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vtprune.cli.common import app


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
