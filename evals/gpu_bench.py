"""Everything that is to be known on a GPU, in one run: `python evals/gpu_bench.py --out DIR`.

First whether the kernels are right, then how fast they are, then methods beside their ideal on models of published size
with random weights; and for each target whether it is met. Needs torch, transformers, triton and accelerate; pytest
runs the kernels' tests where it is installed. `--small` runs all of it in miniature, on a CPU too.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODELS = ("llava-1.5-7b", "qwen2.5-vl-7b")
METHODS = {
    "fastervlm": "fastervlm",
    "divprune": "divprune",
    "uniform": "uniform",
    "fourier": "fourier",
    "todre": "todre",
    "fastv": "fastv",
    "exit": "exit",
}
KEEP = 0.25
PICTURE = 1008  # pixels per side: 576 tokens for LLaVA-1.5, 1,296 for Qwen2.5-VL


@dataclasses.dataclass(frozen=True)
class Target:
    """A figure that is to be reached."""

    name: str
    found: float | None
    most: float
    unit: str = ""

    @property
    def verdict(self) -> str:
        """In words: met, or missed and by how much."""
        if self.found is None:
            return "not measured"
        if self.found <= self.most:
            return "met"
        return f"missed by {self.found / self.most - 1:.0%}" if self.most else "missed"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**dataclasses.asdict(self), "verdict": self.verdict}


def check_kernels(scene: Any, out: Path) -> dict[str, Any]:
    """The tests of the kernels where pytest is installed, else the operators' cases against their references."""
    tests = ROOT / "tests" / "kernels"
    if importlib.util.find_spec("pytest") and tests.is_dir() and not scene.small:
        log = out / "kernel_tests.txt"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", str(tests)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
            text, passed = done.stdout + done.stderr, done.returncode == 0
        except subprocess.TimeoutExpired as error:
            text, passed = f"{error.stdout!r}\nstopped after {error.timeout} s", False
        log.write_text(text)
        last = [line for line in text.splitlines() if line.strip()][-1:]
        return {"by": "pytest", "passed": passed, "said": last[0] if last else ""}
    from vtprune.bench.cases import find_cases
    from vtprune.bench.operators import disagreements

    wrong = {}
    for case in find_cases([], scene):
        for version, reason in disagreements(case).items():
            wrong[f"{case.operator}, {case.shape}: {version}"] = reason
    return {"by": "cases", "passed": not wrong, "said": wrong}


def time_operators(scene: Any, repeats: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """All operators' cases, and the device's peaks."""
    import torch

    from vtprune.bench.cases import find_cases
    from vtprune.bench.operators import measure_peaks, time_cases

    with torch.inference_mode():
        peaks = measure_peaks(scene)
        found = [one.to_dict() for one in time_cases(find_cases([], scene), scene, peaks, repeats)]
    return found, dataclasses.asdict(peaks)


def bench_model(name: str, scene: Any, repeats: int, new_tokens: int) -> list[dict[str, Any]]:
    """All methods beside their ideals on one model, in alternation."""
    import torch
    from PIL import Image

    from vtprune.api import build_chain
    from vtprune.bench import Settings, measure, to_dict
    from vtprune.budget import Budget
    from vtprune.inputs import make_inputs
    from vtprune.models import load_model

    size = "@small" if scene.small else ""
    loaded = load_model(f"random:{name}{size}", device=str(scene.device))
    side = 224 if scene.small else PICTURE
    picture = Image.radial_gradient("L").convert("RGB").resize((side, side))
    inputs = make_inputs(loaded, [picture], "What is shown here?")
    budgets: dict[str, Budget | None] = {x: None if x == "exit" else KEEP for x in METHODS}
    chains = {label: build_chain(METHODS[label], budgets[label], {}) for label in METHODS}
    outcomes = measure(loaded.model, inputs, chains, Settings(new_tokens, repeats, 2))
    del loaded
    if scene.device.type == "cuda":
        torch.cuda.empty_cache()
    return [{**to_dict(outcome), "model": name} for outcome in outcomes]


def attention_choice(operators: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Which attention forward is faster with the last row's scores: the entry of `kernels/measured.json`."""
    from vtprune.bench.cases import SCORED

    ratios = {}
    for case in operators:
        times = case["milliseconds"]
        if case["operator"] == "flash_attention_with_scores" and {"operator", SCORED} <= times.keys():
            ratios[case["shape"]] = times["operator"]["median"] / times[SCORED]["median"]
    if not ratios:
        return None
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    return {"attention_forward": "triton" if mean < 1 else "sdpa", "triton / sdpa": ratios}


def write_choice(document: dict[str, Any], out: Path) -> None:
    """Note the choice in the folder, and on a GPU in the table that the package reads."""
    choice = attention_choice(document["operators"])
    if choice is None:
        return
    machine = document["machine"]
    entry = {machine["device"]: {**choice, "torch": machine["torch"], "triton": machine["triton"]}}
    (out / "measured.json").write_text(json.dumps(entry, indent=2) + "\n")
    table = ROOT / "kernels" / "measured.json"
    if machine["device"] != "cpu" and table.is_file():
        table.write_text(json.dumps({**json.loads(table.read_text()), **entry}, indent=2, sort_keys=True) + "\n")


def scoring_share(points: list[dict[str, Any]], operators: list[dict[str, Any]]) -> float | None:
    """What `attention_scores` of the last token adds to LLaVA's untouched prefill, per scored layer."""
    prefill = [x["prefill"]["baseline"]["median"] for x in points if x["model"] == MODELS[0]]
    score = _version(operators, "attention_scores", "last token, 32 heads", "operator")
    return score / prefill[0] if prefill and score is not None else None


def targets(points: list[dict[str, Any]], operators: list[dict[str, Any]]) -> Iterator[Target]:
    """What issue 4 asks of an H200."""
    for x in points:
        yield Target(f"overhead of {x['method']} on {x['model']}, first token", x["overhead"], 1.05)
        yield Target(f"overhead of {x['method']} on {x['model']}, prefill", x["prefill"]["overhead"], 1.05)
        if x["decode"] is not None:
            yield Target(f"decoding step of {x['method']} on {x['model']} / ideal", x["decode"]["overhead"], 1.03)
    yield Target("attention_scores, share of a prefill per scored layer", scoring_share(points, operators), 0.01)
    for case in operators:
        if case["operator"] == "attention_column_mass":
            times = case["milliseconds"]
            given, forward = times.get("operator, given log-sum-exp"), times.get("sdpa forward")
            ratio = given["median"] / forward["median"] if given and forward else None
            yield Target(f"attention_column_mass / attention forward, {case['shape']}", ratio, 1.0)
    yield Target(
        "greedy_select, 64 of 576, 16 pictures",
        _version(operators, "greedy_select", "16 picture", "operator"),
        0.5,
        "ms",
    )


def _version(operators: list[dict[str, Any]], operator: str, shape: str, version: str) -> float | None:
    for case in operators:
        if case["operator"] == operator and shape in case["shape"] and version in case["milliseconds"]:
            return case["milliseconds"][version]["median"]
    return None


def markdown(document: dict[str, Any]) -> str:
    """The tables for docs/benchmarks.md."""
    from vtprune.bench.machine import machine_line

    lines = [machine_line(document["machine"]), "", f"Kernels: {document['kernels']['said']}", "", "## Targets", ""]
    lines += ["| target | at most | found | |", "|---|---:|---:|---|"]
    for x in document["targets"]:
        found = "" if x["found"] is None else f"{x['found']:.3f} {x['unit']}".strip()
        lines.append(f"| {x['name']} | {x['most']:g} {x['unit']} | {found} | {x['verdict']} |")
    for model in MODELS:
        own = [x for x in document["points"] if x["model"] == model]
        if own:
            lines += ["", f"## {model}, keep {KEEP}", "", *_method_table(own)]
    lines += ["", "## Operators", "", "| operator | version | ms | x reference | x floor |", "|---|---|---:|---:|---:|"]
    for case in document["operators"]:
        reference = case["milliseconds"]["reference"]["median"]
        for name, spread in case["milliseconds"].items():
            ms = spread["median"]
            shares = f"{ms / reference:.3f} | {ms / case['floor_ms']:.1f}"
            lines.append(f"| {case['operator']}: {case['shape']} | {name} | {ms:.4f} | {shares} |")
        for name, reason in case["refused"].items():
            lines.append(f"| {case['operator']}: {case['shape']} | {name} | differs: {reason} | | |")
    return "\n".join(lines) + "\n"


def _method_table(points: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| method | tokens | first token, ms: untouched, method, ideal | speedup | overhead | prefill speedup | "
        "prefill overhead | decoding overhead | waits |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for x in points:
        times = " / ".join(f"{x[key]:.2f}" for key in ("baseline_ttft_ms", "ttft_ms", "ideal_ttft_ms"))
        prefill, decode = x["prefill"], x["decode"]
        waits = x["waits"]["method"]["encoder"] + x["waits"]["method"]["prefill"]
        lines.append(
            f"| {x['method']} | {x['visual_tokens_after']} | {times} | {x['speedup']:.2f} | {x['overhead']:.3f} | "
            f"{prefill['speedup']:.2f} | {prefill['overhead']:.3f} | {decode['overhead']:.3f} | {waits} |"
        )
    return lines


def run(out: Path, small: bool, minutes: float) -> dict[str, Any]:
    """All parts, in the order of their worth; each is written as soon as it is there."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from vtprune.bench.cases import Scene
    from vtprune.bench.machine import describe_machine

    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not small:
        raise SystemExit("error: there is no GPU; --small runs in miniature on the CPU.")
    scene = Scene(device, torch.float32 if small else torch.bfloat16, small)
    repeats = 2 if small else 10
    out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"machine": describe_machine(device), "points": [], "operators": [], "seconds": {}}

    def done(part: str) -> None:
        document["seconds"][part] = round(time.monotonic() - started, 1)
        document["targets"] = [x.to_dict() for x in targets(document["points"], document["operators"])]
        (out / "gpu_bench.json").write_text(json.dumps(document, indent=1) + "\n")
        (out / "gpu_bench.md").write_text(markdown(document))
        print(f"{document['seconds'][part]:7.1f} s  {part}", flush=True)

    document["kernels"] = check_kernels(scene, out)
    done("kernels checked")
    document["operators"], document["peaks"] = time_operators(scene, repeats)
    write_choice(document, out)
    done("operators timed")
    for name in MODELS:
        if time.monotonic() - started > 60 * minutes:
            print(f"no time left for {name}", flush=True)
            break
        document["points"] += bench_model(name, scene, repeats, 3 if small else 16)
        done(name)
    return document


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for JSON and tables")
    parser.add_argument("--small", action="store_true", help="in miniature, on a CPU too")
    parser.add_argument("--minutes", type=float, default=6.0, help="begin no further model after so long")
    options = parser.parse_args()
    document = run(options.out, options.small, options.minutes)
    for x in document["targets"]:
        found = "" if x["found"] is None else f"{x['found']:.3f}"
        print(f"{x['verdict']:>16}  {x['name']}: {found} (at most {x['most']:g} {x['unit']})")
    sys.exit(0 if document["kernels"]["passed"] else 1)


if __name__ == "__main__":
    main()
