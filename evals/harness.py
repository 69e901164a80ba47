"""What an evaluation costs beside the model: the wall time of `vtprune eval`, part by part.

python -m vtprune.evals.harness --model tiny-llava --limit 304 --batch-size 8 --out FILE.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vtprune.bench.machine import describe_machine, machine_line
from vtprune.evals.data.suites import read_suite
from vtprune.evals.runner import asking, evaluate, preparing, run
from vtprune.evals.runner.configurations import plan
from vtprune.evals.runner.folder import RunFolder
from vtprune.evals.runner.pictures import Pictures
from vtprune.evals.table import write_whole
from vtprune.models import load_model

MODEL = "model"
PARTS: dict[str, tuple[tuple[object, str], ...]] = {
    MODEL: ((asking, "answer"),),
    "drawing pictures": ((preparing, "_read"),),
    "processor": ((preparing, "make_batch"),),
    "methods on and off": ((asking, "_applied"),),
    "report, judging, fidelity": ((run, "_before"), (run, "_judged")),
    "overlays": ((Pictures, "draw"),),
    "writing answers": ((RunFolder, "append"), (RunFolder, "gather")),
    "intervals": ((evaluate, "summarise"),),
    "plots and page": ((evaluate, "write_report"),),
}
"""What is timed: functions, by the part that they make up; none of them is called by another one."""


def profile(model: str, limit: int, batch_size: int, methods: Sequence[str], keep: float) -> dict[str, Any]:
    """Seconds of each part of an evaluation on `scenes`, and its share of the whole; loading the model is left out.

    Args:
        model: As `vtprune eval` takes it.
        limit: Number of questions.
        batch_size: Questions per call.
        methods: Methods beside the unpruned model.
        keep: Their budget.
    """
    loaded = load_model(model, device="cpu")
    configurations = plan(methods, [keep])
    seconds = dict.fromkeys(PARTS, 0.0)
    with tempfile.TemporaryDirectory() as folder, _timed(seconds):
        start = time.perf_counter()
        questions = read_suite("scenes", limit=limit)
        seconds["drawing pictures"] += time.perf_counter() - start
        evaluate.evaluate(loaded, questions, configurations, Path(folder) / "run", batch_size=batch_size)
        whole = time.perf_counter() - start
    seconds["everything else"] = whole - sum(seconds.values())
    return {
        "model": model,
        "questions": limit,
        "configurations": [one.name for one in configurations],
        "batch_size": batch_size,
        "machine": machine_line(describe_machine(loaded.model.device)),
        "seconds": {part: round(taken, 3) for part, taken in seconds.items()},
        "wall": round(whole, 3),
        "harness_share": round(1 - seconds[MODEL] / whole, 4),
    }


def markdown(found: dict[str, Any]) -> str:
    """The profile as a table."""
    lines = ["| part | seconds | share |", "|---|---:|---:|"]
    parts = [*found["seconds"].items(), ("all", found["wall"])]
    lines += [f"| {part} | {taken:.2f} | {100 * taken / found['wall']:.1f} % |" for part, taken in parts]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _timed(seconds: dict[str, float]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                original = getattr(owner, name)
                stack.callback(setattr, owner, name, original)
                setattr(owner, name, _watched(original, part, seconds))
        yield


def _watched(function: Callable[..., Any], part: str, seconds: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            result = function(*args, **kwargs)
        finally:
            seconds[part] += time.perf_counter() - start
        return _WatchedContext(result, part, seconds) if hasattr(result, "__enter__") else result

    return watched


class _WatchedContext:
    """A context of which entering and leaving are timed, but not what happens inside."""

    def __init__(self, context: Any, part: str, seconds: dict[str, float]) -> None:
        self.enter = _watched(context.__enter__, part, seconds)
        self.leave = _watched(context.__exit__, part, seconds)

    def __enter__(self) -> Any:
        return self.enter()

    def __exit__(self, *error: Any) -> Any:
        return self.leave(*error)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m vtprune.evals.harness", description=main.__doc__)
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--limit", type=int, default=304, help="number of questions (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="questions per call (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", default=["divprune"], help="beside the unpruned model")
    parser.add_argument("--keep", type=float, default=0.25, help="their budget (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args(arguments)
    found = profile(given.model, given.limit, given.batch_size, given.methods, given.keep)
    if given.out is not None:
        write_whole(given.out, json.dumps(found, indent=1) + "\n")
    print(markdown(found), end="")
    print(f"harness: {100 * found['harness_share']:.1f} % of {found['wall']:.1f} s ({found['machine']})")


if __name__ == "__main__":
    main()
