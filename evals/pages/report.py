"""The page of a run: one file that shows all and asks nobody for anything."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

from vtprune.evals.pages.changes import GROUPS, Changes, find_changes
from vtprune.evals.pages.headline import headlines
from vtprune.evals.pages.lines import make_panel
from vtprune.evals.pages.render import draw_all, render
from vtprune.evals.pages.runs import Run, read_run
from vtprune.evals.pages.tables import by_kind, details, overview
from vtprune.evals.pages.words import value_in_words
from vtprune.evals.runner.folder import REPORT
from vtprune.evals.runner.records import Record

_PICTURES = 96  # in all, so that the page of a large run still opens
_MOST = 12
_QUESTION, _ANSWER = 300, 160  # letters
_TITLES = {"lost": "lost", "gained": "gained", "other": "at the same score"}
_MIME = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}


@dataclasses.dataclass(frozen=True)
class Card:
    """A question whose answer changed, as it is shown.

    Args:
        picture: The overlay as a data URI; "" if none was drawn.
        about: What the question is about.
        answers: Each text and what it is.
    """

    picture: str
    about: str
    question: str
    answers: tuple[tuple[str, str], ...]


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a finished run.

    Args:
        folder: The run's folder, as `vtprune eval` left it.
        out: The file; by default `report.html` in the folder.

    Returns:
        The file that was written.

    Raises:
        ValueError: It is not the folder of a finished run, or it is damaged.
        OSError: A file cannot be read or written.
    """
    run = read_run(folder)
    return render("report.html", out or folder / REPORT, **_content(run))


def _content(run: Run) -> dict[str, Any]:
    summary, panel = run.summary, make_panel([("", run)])
    configurations = [one["name"] for one in run.configurations]
    return {
        "title": f"{summary['model']} on {summary['name']}",
        "run": run,
        "date": run.date,
        "headlines": headlines(run),
        "plots": draw_all(panel, "plot"),
        "overview": overview([("", run)], panel),
        "kinds": by_kind(run),
        "details": details(run),
        "notes": [(one["name"], note) for one in run.configurations for note in one.get("notes", ())],
        "changes": _changes(run),
        "anchors": {name: f"changes-{place}" for place, name in enumerate(configurations) if place},
        "malformed": summary.get("malformed", []),
        "settings": [(name.replace("_", " "), value_in_words(value)) for name, value in summary["settings"].items()],
        "environment": [
            (name.replace("_", " "), value_in_words(value)) for name, value in summary["environment"].items()
        ],
        "command": run.config.get("command", ""),
    }


def _changes(run: Run) -> list[dict[str, Any]]:
    pruned = len(run.configurations) - 1
    found = find_changes(run, max(1, min(_MOST, _PICTURES // max(1, len(GROUPS) * pruned))))
    return [_change(run, name, changes) for name, changes in found.items()]


def _change(run: Run, name: str, changes: Changes) -> dict[str, Any]:
    groups = [
        {
            "title": _TITLES[group] if run.judged else "changed",
            "count": changes.counts[group],
            "cards": [_card(run, *pair) for pair in _with_pictures(changes.shown[group])],
        }
        for group in GROUPS
        if changes.counts[group]
    ]
    return {"name": name, "count": sum(changes.counts.values()), "groups": groups}


def _with_pictures(pairs: list[tuple[Record, Record]]) -> list[tuple[Record, Record]]:
    """Those that can be shown as pictures; all where there is none."""
    return [pair for pair in pairs if pair[1].picture is not None] or pairs


def _card(run: Run, before: Record, after: Record) -> Card:
    answers = [("right", " / ".join(dict.fromkeys(after.answers)))] if after.answers else []
    answers += [("unpruned", before.answer or ""), ("pruned", after.answer or "")]
    path = run.picture(after)
    return Card(
        "" if path is None else data_uri(path),
        ", ".join(after.media),
        _cut(after.question, _QUESTION),
        tuple((what, _cut(text, _ANSWER)) for what, text in answers),
    )


def data_uri(path: Path) -> str:
    """A JPEG or PNG file as a part of a page.

    Raises:
        ValueError: It is neither.
        OSError: It cannot be read.
    """
    if path.suffix.lower() not in _MIME:
        raise ValueError(f"a picture must be a JPEG or PNG file, got {str(path)!r}.")
    return f"data:{_MIME[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most].rstrip()} \N{HORIZONTAL ELLIPSIS}"
