"""What methods cost beyond the tokens that they keep: the time to first token, beside that of the ideal, on one prompt.

python -m vtprune.evals.overheads --model tiny-llava --out docs/results/overheads-tiny-llava.json

`vtprune bench --sweep` measures and counts more. This is short enough for all methods on all tiny models, notes down
which of them refuse, and names its rows as `vtprune.evals.table` does.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import vtprune
from vtprune.api import build_chain
from vtprune.bench.generate import Requested
from vtprune.bench.machine import describe_machine, machine_line
from vtprune.bench.measuring import Settings, alternate
from vtprune.bench.plan import record
from vtprune.bench.replay import replaying
from vtprune.bench.request import fingerprint
from vtprune.bench.stats import Ratio, Spread
from vtprune.budget import check_keep
from vtprune.evals.rows import Row, plan
from vtprune.evals.table import write_whole
from vtprune.images import load_image
from vtprune.inputs import make_inputs
from vtprune.methods.parse import parse_value
from vtprune.models import Loaded, load_model, shipped_example
from vtprune.videos import load_video

PHASES = ("ttft", "prefill")
PICTURE, CLIP = "scene-1.png", "clip-1.mp4"


def measure_rows(model: Any, inputs: Any, rows: Sequence[Row], settings: Settings) -> dict[str, dict[str, Any]]:
    """Measure rows in alternation with one another, their ideals and the untouched model.

    Returns:
        By the name of the row: "tokens_before" and "tokens_after" (visual tokens), and for each of `PHASES` medians and
        quartiles of "baseline", "method" and "ideal" in milliseconds with "speedup" and "overhead", and whether these
        are "..._significant"; for a row that the model refuses only "unsupported", which says why.
    """
    request = Requested(inputs, settings.new_tokens)
    found: dict[str, dict[str, Any]] = {}
    arms: dict[tuple[str, str], Callable[[], Any]] = {("", "baseline"): contextlib.nullcontext}
    for row in rows:
        try:
            chain = build_chain(row.method or "", row.keep, {})
            replayed = record(model, chain, request)
        except ValueError as error:
            found[row.name] = {"unsupported": str(error)}
            continue
        report = replayed.report
        found[row.name] = {"tokens_before": report.visual_tokens_before, "tokens_after": report.visual_tokens_after}
        arms[row.name, "method"] = functools.partial(vtprune.applied, model, chain)
        arms[row.name, "ideal"] = functools.partial(replaying, model, replayed)
    times = alternate(model, request, arms, settings, None) if len(arms) > 1 else {}
    for name, figures in found.items():
        if "unsupported" not in figures:
            mine = {"baseline": times["", "baseline"], **{role: times[name, role] for role in ("method", "ideal")}}
            figures |= {phase: _phase({role: Spread.of(x[phase]) for role, x in mine.items()}) for phase in PHASES}
    return found


def _phase(arms: dict[str, Spread]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        role: {name: round(value, 3) for name, value in spread.to_dict().items()} for role, spread in arms.items()
    }
    pairs = {"speedup": ("baseline", "method"), "overhead": ("method", "ideal")}
    for name, (above, below) in pairs.items():
        ratio = Ratio.of(arms[above], arms[below])
        figures[name] = None if ratio is None else round(ratio.value, 4)
        figures[f"{name}_significant"] = ratio is not None and ratio.significant
    return figures


def measure_table(
    model: Any,
    inputs: Any,
    rows: Sequence[Row],
    out: Path,
    *,
    settings: Settings,
    about: dict[str, Any],
    on_method: Callable[[str], None] = lambda method: None,
) -> dict[str, Any]:
    """Measure the rows that `out` does not hold yet, all budgets of a method together; written after each method.

    Args:
        model: The model.
        inputs: What its processor makes of the prompt.
        rows: See `plan`.
        out: JSON file, kept from run to run.
        settings: How often is measured.
        about: What else the figures depend on; saved with them.
        on_method: Called after each method.

    Raises:
        ValueError: `out` holds figures of another run; machine and versions may differ.
    """
    document: dict[str, Any] = {"settings": about, "rows": {}}
    if out.exists():
        document = json.loads(out.read_text())
        held, now = ({k: v for k, v in x.items() if k != "machine"} for x in (document["settings"], about))
        if held != now:
            raise ValueError(f"out must be a new file or hold figures with {now}, got {held}")
    # The tidying up before every request then passes over what lies there for good, modules above all.
    gc.collect()
    gc.freeze()
    try:
        for method, same in itertools.groupby((row for row in rows if row.method), key=lambda row: row.method):
            todo = [row for row in same if row.name not in document["rows"]]
            if todo:
                document["rows"] |= measure_rows(model, inputs, todo, settings)
                write_whole(out, as_text(document))
            on_method(str(method))
    finally:
        gc.unfreeze()
    return document


def as_text(document: dict[str, Any]) -> str:
    """JSON with a row per line."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(figures)}" for name, figures in document["rows"].items())
    return f'{{\n "settings": {json.dumps(document["settings"])},\n "rows": {{\n{rows}\n }}\n}}\n'


def prompt(loaded: Loaded, clips: bool) -> Any:
    """The shipped picture, or clip, with its question, as inputs of the model."""
    path, question = shipped_example(CLIP if clips else PICTURE)
    if clips:
        return make_inputs(loaded, [], question, [load_video(path)])
    return make_inputs(loaded, [load_image(path)], question)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m vtprune.evals.overheads", description=__doc__)
    parser.add_argument("--model", required=True, help="a shipped model (tiny-llava, ...), a folder, or a Hub id")
    parser.add_argument("--out", required=True, type=Path, help="JSON file; what it holds already stays")
    parser.add_argument("--methods", nargs="*", help="as for vtprune.apply (default: all registered ones)")
    parser.add_argument("--keep", nargs="+", default=["0.5", "0.25", "0.1"], help="budgets (default: 0.5 0.25 0.1)")
    parser.add_argument("--repeats", type=int, default=9, help="timed requests of each arm (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them that do not count")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--clips", action="store_true", help="ask about a clip instead of a picture")
    parser.add_argument("--device", default="auto", help="a GPU if there is one (default: %(default)s)")
    given = parser.parse_args(arguments)
    methods = [m["name"] for m in vtprune.methods()] if given.methods is None else given.methods
    rows = plan(methods, [check_keep(parse_value(keep)) for keep in given.keep])
    loaded = load_model(given.model, device=given.device, dtype=given.dtype)
    inputs = prompt(loaded, given.clips)
    settings = Settings(new_tokens=1, repeats=given.repeats, warmup=given.warmup)
    about = {
        "model": given.model,
        "dtype": given.dtype,
        "about": "clips" if given.clips else "pictures",
        "attention": loaded.model.config.get_text_config()._attn_implementation,
        "inputs": fingerprint(inputs),
        "prompt_slots": inputs["input_ids"].shape[1],
        "repeats": given.repeats,
        "warmup": given.warmup,
        "machine": machine_line(describe_machine(loaded.model.device)),
    }
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("methods", total=len({row.method for row in rows if row.method}))
        measure_table(
            loaded.model,
            inputs,
            rows,
            given.out,
            settings=settings,
            about=about,
            on_method=lambda method: progress.advance(task),
        )


if __name__ == "__main__":
    main()
