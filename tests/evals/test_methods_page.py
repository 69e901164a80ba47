"""docs/methods.md is what its generator makes of the registry, the support matrix, the tables and the notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vtprune.evals import methods_page
from vtprune.evals.methods_data import read_tables
from vtprune.evals.methods_plots import draw_group

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENTS = sorted(
    path for kind in ("methods", "turns", "overheads") for path in (DOCS / "results").glob(f"{kind}-*.json")
)
SEARCHES = sorted((DOCS / "results").glob("search-*.json"))
AGAIN = "run: python -m vtprune.evals.methods_page docs/methods.md docs/results/{methods,turns,overheads,search}-*.json"


def phase(overhead: float, significant: bool) -> dict[str, Any]:
    return {"speedup": 1.5, "speedup_significant": True, "overhead": overhead, "overhead_significant": significant}


def row(accuracy: float, after: float | None = None, **more: Any) -> dict[str, Any]:
    kept = {} if after is None else {"tokens_before": 100, "tokens_after": after, "prefill_flops": 0.5}
    return {"accuracy": accuracy, "n": 100, **kept, **more}


SETTINGS = {"dtype": "bfloat16", "batch_size": 40, "torch": "2", "transformers": "5", "limit": 100}
QUALITY: dict[str, Any] = {
    "settings": {"model": "b", **SETTINGS},
    "rows": {
        "unpruned": row(0.95),
        "blank pictures": row(0.2),
        "random keep=0.25": row(0.6, 25),
        "random keep=0.5": row(0.9, 50),
        "random:seed=1 keep=0.25": row(0.75, 25),
        "random:seed=2 keep=0.25": row(0.45, 25),
        "todre keep=0.25": row(0.4, 0, tokens_seen=13.5),
        "todre:tau=0.5,l_min=1 keep=0.25": row(0.7, 0, tokens_seen=12),
        "exit": row(0.8, 0),
        "evs keep=0.25": row(0.95, 100),
        "globalcom2 keep=0.25": {"unsupported": "globalcom2 cannot work on B (b): no tiles; use hiprune."},
        "tome keep=0.1": {"unsupported": "keep must leave at least 8."},
        "tome keep=0.5": row(0.9, 50),
        "snapkv keep=0.25": row(0.9, 100, cache_bytes=0.4),
        "snapkv keep=0.5": row(0.9, 100),
    },
}
TIMES = {
    "settings": {
        "model": "b",
        "about": "pictures",
        "repeats": 9,
        "dtype": "float32",
        "prompt_slots": 90,
        "machine": "M",
    },
    "rows": {"todre keep=0.25": {"ttft": phase(1.25, True)}, "exit": {"ttft": phase(1.01, False)}},
}
CLIPS = {"settings": {**QUALITY["settings"], "about": "clips"}, "rows": QUALITY["rows"]}
TURNS = {
    "settings": {**QUALITY["settings"], "about": "turns"},
    "rows": {
        "unpruned": row(0.7),
        "blank pictures": row(0.1),
        "snapkv keep=0.25": row(0.6, 100, cache_bytes=0.4),
        "random:place=cache keep=0.25": row(0.5, 100, cache_bytes=0.4),
    },
}
OTHER = {"settings": {"model": "a", **SETTINGS}, "rows": {"unpruned": row(0.9), "blank pictures": row(0.1)}}


def test_page_is_current():
    assert DOCUMENTS
    notes = methods_page.read_notes(DOCS / methods_page.NOTES)
    tables = read_tables([json.loads(path.read_text()) for path in DOCUMENTS], notes["models"])
    searches = [json.loads(path.read_text()) for path in SEARCHES]
    assert methods_page.text(notes, tables, searches) == (DOCS / "methods.md").read_text(), AGAIN
    for group in notes["groups"]:
        assert (DOCS / methods_page.plot(group)).exists() == bool(group.get("views", ["tokens"])), AGAIN


def test_tables_are_joined_and_ordered():
    tables = read_tables([CLIPS, TIMES, QUALITY, OTHER], ["a", "b"])
    assert [table.name for table in tables] == ["a", "b", "b, clips"]
    _, pictures, clips = tables
    assert [point.keep for point in pictures.points["random"]] == ["0.5", "0.25"]
    assert (pictures.seeds, pictures.random("0.25").right) == (3, pytest.approx(0.6))
    assert pictures.random("0.5").right == 0.9
    todre, varied = pictures.points["todre"]
    assert (todre.tokens, todre.ttft) == (0.135, phase(1.25, True))
    assert (varied.label, varied.ttft) == ("0.25, tau=0.5,l_min=1", None)
    assert "evs" in clips.points
    assert "evs" not in pictures.points
    assert pictures.refused["globalcom2"] == {"0.25": "no tiles; use hiprune."}
    assert clips.points["exit"][0].ttft is None


def test_methods_below_random_stand_out():
    tables = read_tables([QUALITY, TIMES, CLIPS, TURNS], ["b"])
    methods = ["todre", "exit", "globalcom2", "tome", "evs", "snapkv"]
    groups = [{"title": "All", "about": "All.", "methods": methods, "views": []}]
    lines = methods_page.text({"groups": groups, "learnt": ["This."], "notes": {"todre": "Why."}}, tables).splitlines()
    assert "- This." in lines
    assert "| b | 0.25 | 14 | 50 | 40.0 | **-20.0** | 1.50 | 1.25 |" in lines
    assert "| b | 0.25, tau=0.5,l_min=1 | 12 | 50 | 70.0 | +10.0 | - | - |" in lines
    assert "| b |  | 0 | 50 | 80.0 |  | 1.50 | 1.01 ~ |" in lines
    assert "| b | 0.5 | 100 | 50 | - | 90.0 | +0.0 | - |" in lines
    assert "| b | 0.25 | 100 | 50 | 40 | 90.0 | +30.0 | 60.0 |" in lines
    assert any("Unpruned: 70.0 (b)." in line for line in lines)
    assert not any(line.startswith("![") for line in lines)
    assert "**What was learnt.** Why." in lines
    assert "Refused on b, b, clips: no tiles; use hiprune." in lines
    assert "Refused on b at 0.1, b, clips at 0.1: keep must leave at least 8." in lines
    assert "| [todre](#todre) | pruning | encoder output, decoder layer | 40.0 (14) | 40.0 (14) |" in lines
    assert "| [evs](#evs) | pruning | encoder output | - | 95.0 (100) |" in lines


def test_plot(tmp_path):
    tables = read_tables([QUALITY, CLIPS, TURNS], ["b"])
    for methods, views in (
        (["random", "todre", "exit", "evs"], ["tokens"]),
        (["todre", "snapkv"], ["tokens", "cache", "turns"]),
        (["evs"], ["tokens", "flops"]),
        ([], ["tokens"]),
    ):
        draw_group(methods, tables, tmp_path / "plots" / "p.png", views=views)
        assert (tmp_path / "plots" / "p.png").read_bytes().startswith(b"\x89PNG")


def test_command_line(tmp_path):
    (tmp_path / methods_page.NOTES).write_text((DOCS / methods_page.NOTES).read_text().replace("tiny-llava", "b"))
    for name, document in (("q", QUALITY), ("t", TIMES)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    methods_page.main([str(tmp_path / name) for name in ("methods.md", "q.json", "t.json")])
    assert "### todre\n" in (tmp_path / "methods.md").read_text()
    drawn = [x for x in methods_page.read_notes(DOCS / methods_page.NOTES)["groups"] if x.get("views", ["tokens"])]
    assert len(list((tmp_path / "plots").iterdir())) == len(drawn)


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ('"todre", ', "", r"which \['todre'\] are not"),
        ('"todre", ', '"todre", "todre", ', r"which \['todre'\] are not"),
        ("[notes]\n", '[notes]\nnothing = "x"\n', r"notes on \['nothing'\]"),
    ],
)
def test_notes_are_about_all_methods(before, after, error, tmp_path):
    notes = (DOCS / methods_page.NOTES).read_text()
    assert before in notes
    (tmp_path / "n.toml").write_text(notes.replace(before, after, 1))
    with pytest.raises(ValueError, match=error):
        methods_page.read_notes(tmp_path / "n.toml")
