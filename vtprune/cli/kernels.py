"""`vtprune bench-kernels`: every operator beside its reference and the floor of the device."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from vtprune.cli.common import AsJson, Device, app, fail, input_errors


@app.command("bench-kernels")
def bench_kernels(
    operator: Annotated[
        list[str] | None, typer.Option("--operator", help="Operator; may repeat. Default: all.")
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16.")
    ] = "auto",
    shapes: Annotated[str, typer.Option("--shapes", help="auto (full on a GPU, else small), full or small.")] = "auto",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Samples of each version.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Time every operator beside its torch reference, other ways to compute it, and the floor of the device.

    The floor is the time for the operator's bytes or FLOPs at the speed that a copy or a matrix product reaches on this
    device in the same run. A version whose result differs from the reference's gets no time, and the exit code is 1.
    """
    for name, value, allowed in (
        ("--dtype", dtype, ("auto", "float32", "bfloat16", "float16")),
        ("--shapes", shapes, ("auto", "full", "small")),
    ):
        if value not in allowed:
            fail(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
    import torch

    from vtprune.bench.cases import Scene, find_cases
    from vtprune.bench.machine import describe_machine, machine_line
    from vtprune.bench.operators import measure_peaks, time_cases
    from vtprune.models import usable_device

    with input_errors():
        where = usable_device(device)
        kind = getattr(torch, dtype) if dtype != "auto" else torch.float32 if where.type == "cpu" else torch.bfloat16
        scene = Scene(where, kind, shapes == "small" or (shapes == "auto" and where.type == "cpu"))
        next(find_cases(operator or [], scene), None)
    with torch.inference_mode():
        peaks = measure_peaks(scene)
        timed = list(time_cases(find_cases(operator or [], scene), scene, peaks, repeats))
    machine = describe_machine(where)
    if as_json:
        document = {
            "machine": machine,
            "dtype": str(kind).removeprefix("torch."),
            "bytes_per_second": peaks.bytes_per_second,
            "flops_per_second": peaks.flops_per_second,
            "cases": [one.to_dict() for one in timed],
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        console = Console(highlight=False)
        for one in timed:
            console.print(_table(one))
        precision = str(kind).removeprefix("torch.")
        console.print(
            f"floor: bytes at {peaks.bytes_per_second / 1e9:,.1f} GB/s (copy) or FLOPs at "
            f"{peaks.flops_per_second / 1e12:,.3f} TFLOP/s ({precision} product), measured here.",
            markup=False,
        )
        console.print(machine_line(machine), markup=False, style="dim")
    if any(one.refused for one in timed):
        raise typer.Exit(1)


def _table(one: Any) -> Table:
    table = Table(
        title=f"{one.case.operator}: {one.case.shape}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("", min_width=28)
    for head in ("ms", "quartiles", "x reference", "x floor"):
        table.add_column(head, justify="right", no_wrap=True)
    reference = one.times["reference"].median
    for name, spread in one.times.items():
        table.add_row(
            name,
            f"{spread.median:,.3f}",
            f"{spread.lower:,.3f}..{spread.upper:,.3f}",
            f"{spread.median / reference:.2f}",
            f"{spread.median / one.floor_ms:,.1f}",
        )
    for name, reason in one.refused.items():
        table.add_row(f"{name}: differs from the reference, {reason}")
    table.add_row(f"floor ({one.bound})", f"{one.floor_ms:,.3f}")
    return table
