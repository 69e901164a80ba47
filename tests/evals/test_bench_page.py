"""The page of benchmarks shows what its documents hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtprune.evals import bench_page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
DOCUMENTS = sorted((ROOT / "docs" / "results").glob("bench-*.json"))


def test_page_is_that_of_the_documents() -> None:
    assert DOCUMENTS
    text = PAGE.read_text(encoding="utf-8")
    assert bench_page.with_figures(text, [json.loads(path.read_text()) for path in DOCUMENTS]) == text


def test_page_without_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must have the marks"):
        bench_page.main([str(page), *map(str, DOCUMENTS)])
    assert page.read_text() == "nothing"
