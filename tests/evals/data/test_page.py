"""docs/evaluation-data.md says what is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vtprune.evals.data.fields import FIELDS
from vtprune.evals.data.jsonl import read_jsonl
from vtprune.evals.metrics import METRICS


@pytest.fixture(scope="module")
def page():
    return (Path(__file__).parents[3] / "docs" / "evaluation-data.md").read_text(encoding="utf-8")


def test_the_example_can_be_read(page, tmp_path):
    example = re.search(r"```json\n(.*?)```", page, re.DOTALL).group(1)
    for line in map(json.loads, example.splitlines()):
        for field in ("image", "images", "video"):
            names = line.get(field, [])
            for name in names if isinstance(names, list) else [names]:
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_bytes(b"there")
    (tmp_path / "questions.jsonl").write_text(example)
    found = read_jsonl(tmp_path / "questions.jsonl", metric="exact_match")
    assert [sample.answers for sample in found.samples] == [("red",), ("no",), ("the door", "door"), ("3",), ("east",)]


def test_all_fields_and_metrics_are_listed(page):
    fields, metrics = page.split("## Metrics")
    first_cells = [row.split("|")[1] for row in fields.splitlines() if row.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", "".join(first_cells))) == sorted(FIELDS)
    assert re.findall(r"^\| `(\w+)`", metrics, re.MULTILINE) == list(METRICS)
