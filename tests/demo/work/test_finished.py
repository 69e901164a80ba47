"""Which runs may be looked at: those that were given, whatever a visitor names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evals.pages.folders import write_folder
from vtprune.demo.work.finished import find_runs

EXAMPLE = "Example: tiny-llava, 300 questions of scenes"


def test_folders_of_runs_and_what_holds_them(tmp_path):
    several = tmp_path / "several"
    write_folder(several / "first", n=4)
    write_folder(several / "second", n=1, model="tiny-internvl", name="clips")
    (several / "first.txt").write_text("no run")
    (several / "unfinished").mkdir()
    (several / "unfinished" / "config.json").write_text("{}")
    alone = write_folder(tmp_path / "other" / "first", n=5)
    assert list(find_runs([several, alone, alone])) == [
        "several/first: tiny-llava, 4 questions of scenes",
        "several/second: tiny-internvl, 1 question of clips",
        "other/first: tiny-llava, 5 questions of scenes",
        EXAMPLE,
    ]


def test_what_holds_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="holds no finished run"):
        find_runs([tmp_path])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not finished \(no summary.json\)"):
        find_runs([tmp_path])


def test_the_shipped_run_is_the_one_of_the_docs():
    """Its figures are measured; both copies are one."""
    run = find_runs([])[EXAMPLE]
    told = Path(__file__).parents[3] / "docs" / "results" / "eval-tiny-llava.json"
    assert run.summary == json.loads(told.read_text())
    assert run.config["settings"] == run.summary["settings"]
