"""The page of several runs, and the same for scripts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vtprune.evals.pages.compare import Comparison, Section
from vtprune.evals.pages.lines import make_panel
from vtprune.evals.pages.render import draw_all, render
from vtprune.evals.pages.tables import about_runs, differences, overview


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write a page with a section for the runs of each model and question set.

    Args:
        comparison: The runs.
        out: The file.

    Raises:
        OSError: The file cannot be written.
    """
    sections = [_content(section, f"plot-{place}") for place, section in enumerate(comparison.sections)]
    count = sum(len(section.runs) for section in comparison.sections)
    title = f"{count} runs compared"
    return render("comparison.html", out, title=title, sections=sections, warnings=comparison.warnings)


def _content(section: Section, key: str) -> dict[str, Any]:
    panel = make_panel(section.runs)
    run = section.runs[0][1]
    return {
        "title": f"{run.summary['model']} on {run.summary['name']}",
        "metric": run.summary["metric"].replace("_", " ") if run.judged else "",
        "source": run.summary["settings"]["source"],
        "runs": about_runs(section.runs),
        "warnings": section.warnings,
        "plots": draw_all(panel, key),
        "overview": overview(section.runs, panel),
        "differences": differences(section),
        "first": section.runs[0][0],
    }


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain values, ready for JSON; the Pareto front is that of all runs of a section."""
    return {"warnings": list(comparison.warnings), "sections": [_section(one) for one in comparison.sections]}


def _section(section: Section) -> dict[str, Any]:
    fronts = make_panel(section.runs).fronts()
    first = section.runs[0][1].summary
    return {
        "model": first["model"],
        "name": first["name"],
        "source": first["settings"]["source"],
        "metric": first["metric"],
        "warnings": list(section.warnings),
        "runs": [{"run": name, "folder": str(run.folder), "n": run.summary["n"]} for name, run in section.runs],
        "configurations": [
            {
                "run": name,
                **one,
                "pareto": {view: view in fronts.get((name, one["name"]), ()) for view in one["pareto"]},
            }
            for name, run in section.runs
            for one in run.configurations
        ],
        "differences": [dataclasses.asdict(one) for one in section.differences],
    }
