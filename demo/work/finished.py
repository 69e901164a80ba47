"""Finished evaluations that visitors may look at: those in the folders given at the start, and one that is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from vtprune.evals.pages.compare import short_names
from vtprune.evals.pages.runs import Run, read_run
from vtprune.evals.runner.folder import CONFIG, SUMMARY


def find_runs(folders: Sequence[Path]) -> dict[str, Run]:
    """The runs, by what they are called on the page; nothing else of the folders is ever read.

    Args:
        folders: Each that of a run, or one that holds folders of runs.

    Raises:
        ValueError: A folder is not there or holds no finished run, or a run is damaged.
    """
    paths = list(dict.fromkeys(path.resolve() for folder in folders for path in _runs_in(folder)))
    names = short_names(paths) if paths else []
    found = {f"{name}: {title(run)}": run for name, run in zip(names, map(read_run, paths), strict=True)}
    shipped = read_run(Path(str(resources.files("vtprune.evals"))) / "examples" / "run-tiny-llava")
    return found | {f"Example: {title(shipped)}": shipped}


def title(run: Run) -> str:
    """Model and questions of a run, in words."""
    asked = run.summary["n"]
    return f"{run.summary['model']}, {asked:,} question{'' if asked == 1 else 's'} of {run.summary['name']}"


def _runs_in(folder: Path) -> list[Path]:
    if not folder.is_dir() or (folder / CONFIG).exists():
        return [folder]  # which `read_run` takes, or says why not
    inside = [path for path in sorted(folder.iterdir()) if (path / SUMMARY).is_file() and (path / CONFIG).is_file()]
    if not inside:
        raise ValueError(
            f"results folder {str(folder)!r} holds no finished run; give one that `vtprune eval` wrote, or a folder "
            "that holds such."
        )
    return inside
