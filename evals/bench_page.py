"""The figures of docs/benchmarks.md, from the documents of `vtprune bench --sweep` and `vtprune bench-kernels --json`.

`python -m vtprune.evals.bench_page docs/benchmarks.md docs/results/bench-*.json` writes them between the page's marks.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtprune.bench.machine import machine_line

BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
ARMS = ("baseline", "method", "ideal")


def main(arguments: Sequence[str]) -> None:
    """Rewrite a page.

    Args:
        arguments: The page, then the documents, whose figures appear in this order.
    """
    page, *documents = map(Path, arguments)
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} must have the marks {BEGIN} and {END}.")
    page.write_text(with_figures(text, [json.loads(path.read_text(encoding="utf-8")) for path in documents]), "utf-8")


def with_figures(page: str, documents: Sequence[dict[str, Any]]) -> str:
    """The text of a page with the figures of the documents between its marks."""
    figures = "\n".join(_sweep(document) if "points" in document else _kernels(document) for document in documents)
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{figures}{END}", page, flags=re.DOTALL)


def _sweep(document: dict[str, Any]) -> str:
    about, points = document["about"], document["points"]
    lines = [
        f"### `{about['model']}`, {about['dtype']}, {about['attention']}",
        "",
        f"{about['machine']}. {about['prompt_slots']} slots, {points[0]['visual_tokens_before']} of them visual; "
        f"medians of {about['repeats']} rounds.",
        "",
        "| method | keep | tokens | first token, ms: untouched, method, ideal | speedup | overhead "
        "| prefill, ms | speedup | overhead | tower + projector, ms | further token: overhead |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for point in points:
        apart = " + ".join(f"{point[part]['method']['median']:.1f}" for part in ("tower", "projector"))
        cells = [
            point["method"],
            "" if point["keep"] is None else str(point["keep"]),
            str(point["visual_tokens_after"]),
            *_phase(point["ttft"]),
            *_phase(point["prefill"]),
            apart,
            _ratio(point["decode"], "overhead"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Counted, which does not depend on the machine:",
        "",
        "| method | keep | executed GFLOP: untouched, method, ideal | peak MiB over weights | KV MiB "
        "| operators in encoder + prefill: method, ideal |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for point in points:
        flops = [sum(point["flops"]["executed"][arm][part] for part in ("encoder", "prefill")) / 1e9 for arm in ARMS]
        counted = [point["operators"][arm] for arm in ("method", "ideal")]
        operators = [f"{one['encoder']} + {one['prefill']}" for one in counted]
        cells = [
            point["method"],
            "" if point["keep"] is None else str(point["keep"]),
            " / ".join(f"{x:.1f}" for x in flops),
            *(" / ".join(f"{point[key][arm] / 2**20:.1f}" for arm in ARMS) for key in ("peak_bytes", "kv_bytes")),
            ", ".join(operators),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""]) + "\n"


def _phase(phase: dict[str, Any]) -> list[str]:
    times = " / ".join(f"{phase[arm]['median']:,.0f}" for arm in ARMS)
    return [times, _ratio(phase, "speedup"), _ratio(phase, "overhead")]


def _ratio(phase: dict[str, Any], name: str) -> str:
    return f"{phase[name]:.2f}{'' if phase[f'{name}_significant'] else ' ~'}"


def _kernels(document: dict[str, Any]) -> str:
    lines = [
        f"### Operators, {document['dtype']}",
        "",
        f"{machine_line(document['machine'])}. Floor: {document['bytes_per_second'] / 1e9:.1f} GB/s (copy), "
        f"{document['flops_per_second'] / 1e12:.3f} TFLOP/s (product), measured in the same run.",
        "",
        "| operator | case | version | ms (quartiles) | x reference | x floor |",
        "|---|---|---|---:|---:|---:|",
    ]
    for case in document["cases"]:
        reference = case["milliseconds"]["reference"]["median"]
        for version, spread in case["milliseconds"].items():
            cells = [
                case["operator"],
                case["shape"],
                version,
                f"{spread['median']:.3f} ({spread['q1']:.3f}..{spread['q3']:.3f})",
                f"{spread['median'] / reference:.2f}",
                f"{spread['median'] / case['floor_ms']:.1f} ({case['bound']})",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""]) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
