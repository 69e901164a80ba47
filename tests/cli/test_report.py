"""`vtprune report`: the page of a run, and runs side by side."""

from __future__ import annotations

import json
import re

import pytest

from tests.evals.pages.folders import write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "first", ["divprune"], [0.5, 0.25], n=12)


@pytest.fixture
def refused(invoke):
    """The command must refuse: exit code 2, one line on stderr that holds `said`, nothing on stdout."""

    def call(*words, said):
        result = invoke("report", *words)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, result.stderr
        assert said in lines[0]

    return call


def test_one_run(invoke, folder):
    result = invoke("report", folder)
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert "divprune@0.25" in result.stdout
    assert str(folder / "report.html") in result.stdout


def test_one_run_elsewhere_as_json(invoke, folder, tmp_path):
    out = tmp_path / "new" / "page.html"
    result = invoke("report", folder, "--out", out, "--json")
    assert json.loads(result.stdout) == {**json.loads((folder / "summary.json").read_text()), "page": str(out)}
    assert out.is_file()
    assert not (folder / "report.html").exists()


def test_several_runs(invoke, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    second = write_folder(tmp_path / "second", ["random"], [0.25], n=12, seed=1)
    other = write_folder(tmp_path / "other", ["random"], [0.25], n=12, model="tiny-internvl")
    result = invoke("report", folder, second, other)
    assert result.exit_code == 0, result.output
    assert "warning: The runs differ in model" in result.stdout
    assert re.search(r"second: .*\n random@0.25 ", result.stdout)
    assert (tmp_path / "comparison.html").is_file()
    document = json.loads(invoke("report", folder, second, other, "--json").stdout)
    assert [one["model"] for one in document["sections"]] == ["tiny-llava", "tiny-internvl"]
    assert document["page"] == "comparison.html"


def test_refusals(refused, folder, tmp_path):
    refused(tmp_path / "nowhere", said="is not a folder")
    refused(tmp_path, said="is not the folder of a run (no config.json)")
    refused(folder, folder, said="is given twice")
    refused(folder, "--out", tmp_path / "page.txt", said="must be the name of a HTML file, as in report.html")
    (folder / "summary.json").rename(folder / "away")
    refused(folder, said="is not finished (no summary.json)")
    (folder / "summary.json").write_text('{"format": 99}')
    refused(folder, said="has format 99")
    assert not (folder / "report.html").exists()
