"""What works where, as tried: every method on every family with a picture and with a video.

`python -m tests.support` tries it and writes `vtprune/support.json` and `docs/support.md`; a test compares the former.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vtprune
from tests.cases import METHODS
from tests.families import FAMILIES, IMAGE, VIDEO, Family
from tests.reference import reference, run
from vtprune.integrations import FAMILIES as INTEGRATIONS
from vtprune.integrations import UNSUPPORTED
from vtprune.methods import method_names

ROOT = Path(__file__).parents[1]
JSON = ROOT / "vtprune" / "support.json"
PAGE = ROOT / "docs" / "support.md"

Tried = dict[str, dict[str, dict[str, str]]]
YES, NO_VIDEO = "yes", "takes no videos"


@torch.no_grad()
def attempt(family: Family, model: Any, name: str, kind: str) -> str:
    """Try one combination: YES if it equals the bare model with the same decisions, or why it refuses."""
    row = family.row(5, kind, 7)
    method = (name, METHODS[name])
    try:
        (decided,), (fed,), logits, _ = run(model, family, method, row)
    except ValueError as refused:
        if "cannot work on" not in str(refused):
            raise
        return str(refused).split(": ", 1)[1].rstrip(".")
    except pytest.skip.Exception:  # it ran; what is computed inside layers: tests/engine/test_sparse_methods.py
        return YES
    expected, _ = reference(model, family, row, decided, fed)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    return YES


def try_family(name: str) -> dict[str, dict[str, str]]:
    """What one family does with every method: {method: {kind: YES or a reason}}."""
    found: dict[str, dict[str, str]] = {}
    for family in (f for f in FAMILIES.values() if f.name.split("-")[0] == name):
        model = family.model()
        for method in method_names():
            results = {kind: attempt(family, model, method, kind) for kind in family.kinds}
            results = {IMAGE: results[IMAGE], VIDEO: results.get(VIDEO, NO_VIDEO)}
            if found.setdefault(method, results) != results:
                raise AssertionError(f"{method} works on one {name} and not on another")
    return found


def page(tried: Tried) -> str:
    """The matrix as Markdown."""
    families = list(tried)
    lines = [
        "# What works where",
        "",
        "Made by `python -m tests.support`, which runs every method on a tiny random model of every family, compares",
        "logits with a plain loop over the decoder's layers that drops the same tokens, and writes down what it finds;",
        "`make test` compares this page with a new run. Each cell: pictures / videos.",
        "",
        "| method | " + " | ".join(families) + " |",
        "|---|" + "---|" * len(families),
    ]
    notes: dict[str, int] = {}
    for method in method_names():
        cells = []
        for family in families:
            shown = []
            for kind in (IMAGE, VIDEO):
                result = tried[family][method][kind]
                number = notes.setdefault(result, len(notes) + 1) if result not in (YES, NO_VIDEO) else 0
                shown.append({YES: "yes", NO_VIDEO: "-"}.get(result, f"no [{number}]"))
            cells.append(shown[0] if shown[0] == shown[1] else " / ".join(shown))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", "yes: pictures and videos alike. -: the family takes no videos.", ""]
    lines += [f"[{number}] {reason}." for reason, number in notes.items()]
    kinds = {family.family: family.model_types for family in INTEGRATIONS}
    lines += ["", "## Families", "", "| family | model types of transformers |", "|---|---|"]
    lines += [f"| {family} | {', '.join(kinds[family])} |" for family in families]
    lines += ["", "Not supported, and refused when a method is applied:", ""]
    lines += [f"- {kind}: {reason}" for kind, reason in UNSUPPORTED.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Try everything and write both files."""
    tried = {family.family: try_family(family.family) for family in INTEGRATIONS}
    JSON.write_text(json.dumps(tried, indent=1) + "\n")
    PAGE.write_text(page(tried))
    assert vtprune.methods()


if __name__ == "__main__":
    main()
