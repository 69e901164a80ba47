"""What pruning costs, as a table: unpruned, blank, and every method at every budget, on the same questions.

python -m vtprune.evals.table --model tiny-llava --methods divprune fastv:layer=2 --keep 0.5 0.25 --out FILE.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import vtprune
from vtprune.budget import check_keep
from vtprune.evals.clip_questions import CLIP_KINDS
from vtprune.evals.clip_suite import questions_about_clips
from vtprune.evals.questions import KINDS
from vtprune.evals.rows import Row, plan, run_row
from vtprune.evals.suite import scene_questions
from vtprune.evals.turns import evaluate_turns, question_pairs
from vtprune.methods.parse import parse_value
from vtprune.models import load_model, resolve_model


def run_table(
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    out: Path,
    *,
    settings: dict[str, Any],
    limit: int,
    seed: int = 0,
    batch_size: int = 32,
    clips: bool = False,
    turns: bool = False,
    on_row: Callable[[Row], Callable[[int], None] | None] = lambda row: None,
) -> dict[str, Any]:
    """Evaluate the rows that `out` does not hold yet; after each one the JSON and the Markdown beside it are written.

    Args:
        model: The model.
        processor: Its processor.
        rows: See `plan`.
        out: JSON file, kept from run to run.
        settings: What else the results depend on; saved with them.
        limit: Number of questions.
        seed: Which test set, see `scene_questions`.
        batch_size: Questions per batch.
        clips: Ask about clips instead of pictures.
        turns: Ask second questions about pictures, see `vtprune.evals.turns`.
        on_row: Called before each row; what it returns is called with the number of questions of each batch.

    Raises:
        ValueError: If `out` holds results with other settings, or clips and turns are wanted together.
    """
    if clips and turns:
        raise ValueError("further turns are about pictures: ask for clips or turns, not for both")
    settings = {**settings, "limit": limit, "seed": seed, "batch_size": batch_size}
    if clips:
        settings["about"] = "clips"
    if turns:
        settings["about"] = "turns"
    table: dict[str, Any] = {"settings": settings, "rows": {}}
    if out.exists():
        table = json.loads(out.read_text())
        if table["settings"] != settings:
            raise ValueError(f"out must be a new file or hold results with {settings}, got {table['settings']}")
    asked: dict[str, Any] = {"evaluate": evaluate_turns, "pairs": question_pairs(limit, seed)} if turns else {}
    if not turns:
        asked["questions"] = questions_about_clips(limit, seed) if clips else scene_questions(limit, seed)
    for row in rows:
        if row.name not in table["rows"]:
            result = run_row(model, processor, row, **asked, batch_size=batch_size, on_batch=on_row(row))
            table["rows"][row.name] = result
            write_whole(out, json.dumps(table, indent=2) + "\n")
            write_whole(out.with_suffix(".md"), markdown(table))
    return table


def markdown(table: dict[str, Any]) -> str:
    """The table in Markdown, accuracies in percent."""
    kinds = CLIP_KINDS if table["settings"].get("about") == "clips" else KINDS
    lines = [
        "| | " + " | ".join(("all", *kinds)) + " | prefill FLOPs |",
        "|---" + "|---:" * (len(kinds) + 2) + "|",
    ]
    for name, row in table["rows"].items():
        if "unsupported" in row:
            cells = ["-"] * (len(kinds) + 2)
        else:
            shares = [row["accuracy"], *(row["by_kind"].get(kind) for kind in kinds)]
            cells = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
            cells.append(f"{100 * row['prefill_flops']:.0f} %" if "prefill_flops" in row else "100 %")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def fingerprint(model: Any, source: str) -> str:
    """What tells the weights of two models of the same name apart: a digest of the local files, else the commit."""
    files = sorted(Path(source).glob("*.safetensors"))
    if not files:
        return str(getattr(model.config, "_commit_hash", None))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def write_whole(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    os.replace(fresh, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, evaluate, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m vtprune.evals.table", description=main.__doc__)
    parser.add_argument("--model", required=True, help="a shipped model (tiny-llava, ...), a folder, or a Hub id")
    parser.add_argument("--out", required=True, type=Path, help="JSON file; a Markdown table is written beside it")
    parser.add_argument("--limit", type=int, default=2000, help="number of questions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which test set (default: %(default)s)")
    parser.add_argument("--methods", nargs="*", help="as for vtprune.apply (default: all registered ones)")
    parser.add_argument("--keep", nargs="+", default=["0.5", "0.25", "0.1"], help="budgets (default: 0.5 0.25 0.1)")
    parser.add_argument("--batch-size", type=int, default=32, help="questions per batch (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    about = parser.add_mutually_exclusive_group()
    about.add_argument("--clips", action="store_true", help="ask about clips instead of pictures")
    about.add_argument("--turns", action="store_true", help="ask a second question, on the cache of the first")
    parser.add_argument("--device", default="auto", help="a GPU if there is one (default: %(default)s)")
    given = parser.parse_args(arguments)
    methods = [m["name"] for m in vtprune.methods()] if given.methods is None else given.methods
    rows = plan(methods, [check_keep(parse_value(keep)) for keep in given.keep])
    loaded = load_model(given.model, device=given.device, dtype=given.dtype)
    settings = {
        "model": given.model,
        "weights": fingerprint(loaded.model, resolve_model(given.model)),
        "dtype": given.dtype,
        "vtprune": vtprune.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:

        def show(row: Row) -> Callable[[int], None]:
            task = progress.add_task(row.name, total=given.limit)
            return lambda n: progress.advance(task, n)

        options = dict(limit=given.limit, seed=given.seed, batch_size=given.batch_size, on_row=show)
        options |= dict(clips=given.clips, turns=given.turns)
        table = run_table(loaded.model, loaded.processor, rows, given.out, settings=settings, **options)
    Console().print(markdown(table), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
