import json

import pytest

from tests.evals.pages.folders import write_folder
from tests.evals.pages.page import Page
from vtprune.evals.pages.compare import compare
from vtprune.evals.pages.comparison import to_dict, write_comparison
from vtprune.evals.statistics import paired_interval


def answers(folder, configuration):
    """Score and group by id, of the questions that were judged."""
    lines = map(json.loads, (folder / "questions.jsonl").read_text().splitlines())
    return {
        one["id"]: (one["score"], one["group"])
        for one in lines
        if one["configuration"] == configuration and one["score"] is not None
    }


def test_differences_are_paired_on_the_questions_of_both(tmp_path):
    first = write_folder(tmp_path / "first", ["divprune"], [0.5, 0.25], n=60)
    second = write_folder(tmp_path / "second", ["divprune"], [0.25], n=40, seed=1, failing=3)
    (section,) = compare([first, second]).sections
    assert [(one.configuration, one.against) for one in section.differences] == [
        ("unpruned", "unpruned"),
        ("divprune@0.25", "divprune@0.25"),
    ]
    found = section.differences[1]
    mine, theirs = answers(second, "divprune@0.25"), answers(first, "divprune@0.25")
    both = [one for one in mine if one in theirs]
    assert found.n == len(both) == 37
    groups = [mine[one][1] for one in both]
    expected = paired_interval([mine[one][0] for one in both], [theirs[one][0] for one in both], groups)
    assert (found.difference, *found.interval) == pytest.approx(expected)
    assert "first 60, second 40" in section.warnings[0]


def test_without_a_namesake_those_of_the_same_budget_are_compared(tmp_path):
    first = write_folder(tmp_path / "a", ["divprune", "fastv"], [0.5, 0.25], n=6)
    second = write_folder(tmp_path / "b", ["fastv", "random"], [0.25, 64], n=6)
    (section,) = compare([first, second]).sections
    assert [(one.configuration, one.against) for one in section.differences] == [
        ("unpruned", "unpruned"),
        ("fastv@0.25", "fastv@0.25"),
        ("random@0.25", "divprune@0.25"),
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "tiny-internvl"}, "differ in model."),
        (
            {"name": "clips", "source": {"suite": "clips", "seed": 0}},
            "differ in question set and source of the questions.",
        ),
        ({"source": {"suite": "scenes", "seed": 1}}, "differ in source of the questions."),
        ({"metric": "token_f1"}, "differ in metric."),
        ({"judged": False}, "differ in right answers."),
    ],
)
def test_what_cannot_be_compared_has_a_section_of_its_own(tmp_path, change, said):
    runs = [write_folder(tmp_path / "a", n=6), write_folder(tmp_path / "b", n=6, **change)]
    comparison = compare([*runs, write_folder(tmp_path / "c", n=4)])
    assert [[name for name, _ in section.runs] for section in comparison.sections] == [["a", "c"], ["b"]]
    assert said in comparison.warnings[0]
    assert not comparison.sections[1].differences


def test_runs_without_right_answers_are_compared_by_agreement(tmp_path):
    runs = [
        write_folder(tmp_path / name, ["divprune"], [0.25], n=20, judged=False, seed=i) for i, name in enumerate("ab")
    ]
    (section,) = compare(runs).sections
    (found,) = section.differences
    agreement = [run.configurations[1]["fidelity"]["agreement"] for _, run in section.runs]
    assert found.difference == pytest.approx(agreement[1] - agreement[0])


def test_times_of_other_machines_are_warned_of(tmp_path):
    runs = [write_folder(tmp_path / name, ["divprune"], [0.25], n=4) for name in "ab"]
    assert not compare(runs).sections[0].warnings
    path = runs[1] / "summary.json"
    summary = json.loads(path.read_text())
    summary["environment"]["cpu"] = "Another CPU"
    summary["settings"]["batch_size"] = 1
    path.write_text(json.dumps(summary))
    assert compare(runs).sections[0].warnings == (
        "Times are not comparable: the runs differ in machine and batch size.",
    )


def test_names_are_as_long_as_they_must_be(tmp_path):
    runs = [write_folder(tmp_path / name, ["divprune"], [0.5], n=2) for name in ("x/run", "y/run", "z")]
    (section,) = compare(runs).sections
    assert [name for name, _ in section.runs] == ["x/run", "y/run", f"{tmp_path.name}/z"]


def test_page(tmp_path):
    runs = [
        write_folder(tmp_path / "a", ["divprune"], [0.5, 0.1], n=30),
        write_folder(tmp_path / "b<i>", ["divprune"], [0.5, 0.1], n=30, seed=2),
        write_folder(
            tmp_path / "c", ["divprune"], [0.5], n=30, name="clips", source={"suite": "clips", "seed": 0, "fps": None}
        ),
    ]
    comparison = compare(runs)
    page = Page(write_comparison(comparison, tmp_path / "page.html"))
    assert page.tags.count("svg") == 6
    assert len(page.ids) == len(set(page.ids))
    assert all(address.startswith("#") for address in page.addresses)
    assert "<i>" not in page.source
    assert "None" not in page.text
    assert "do not compare across sections" in page.text
    rows = {row[0]: row for row in page.cells if row and len(row) > 4}
    document = to_dict(comparison)
    for one in (one for section in document["sections"] for one in section["configurations"]):
        row = rows[f"{one['run']}: {one['name']}"]
        assert f"{100 * one['accuracy']:.1f} %" in row[1]
        assert ("◆" in row[4]) == one["pareto"]["tokens"]
    (found,) = [one for one in document["sections"][0]["differences"] if one["configuration"] == "divprune@0.1"]
    row = next(row for row in page.cells if row[:2] == ["b<i>: divprune@0.1", "a: divprune@0.1"])
    assert row[2] == "30"
    assert row[3].startswith(f"{100 * found['difference']:+.1f}".replace("-", "\N{MINUS SIGN}"))


def test_the_front_is_that_of_all_runs(tmp_path):
    good = write_folder(tmp_path / "good", ["divprune"], [0.5], n=40, clean=1.0)
    bad = write_folder(tmp_path / "bad", ["divprune"], [0.5], n=40, clean=0.2)
    (section,) = to_dict(compare([good, bad]))["sections"]
    on = {(one["run"], one["name"]): one["pareto"]["tokens"] for one in section["configurations"]}
    assert on[("good", "divprune@0.5")]
    assert not on[("bad", "divprune@0.5")]
    assert not on[("bad", "unpruned")]
