import json

import pytest

from tests.evals.pages.folders import write_folder
from tests.evals.pages.page import Page
from vtprune.evals.pages import words
from vtprune.evals.pages.report import write_report
from vtprune.evals.pages.words import percents, point_range, points

EVIL = "<script>alert('x')</script> & \"quotes\" 何色ですか $x^2$"


def percent(share, digits=1):
    return words.percent(share, digits).replace(words.NBSP, " ")


def row_of(page, name, columns):
    """The cells of a configuration in the table of so many columns."""
    return next(row for row in page.cells if row and row[0] == name and len(row) == columns)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("runs") / "run", failing=2, question=EVIL, answer="<b>red</b>")


@pytest.fixture(scope="module")
def page(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path)


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_asks_nobody_for_anything(page):
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    assert "@import" not in page.source
    assert "url(http" not in page.source


def test_ids_are_unique_and_links_lead_somewhere(page):
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)


def test_texts_are_escaped(page):
    assert "<script" not in page.source
    assert "<b>" not in page.source
    assert " ".join(EVIL.split()) in page.text
    assert "the picture is <broken> & has 0 pixels" in page.text


def test_plots_can_be_read_aloud(page, summary):
    plots = [attributes for tag, attributes in page.attributes if tag == "svg"]
    assert len(plots) == 3
    assert all(one["role"] == "group" and one["aria-label"] for one in plots)
    drawings = [one for tag, one in page.attributes if one.get("aria-labelledby", "").startswith("plot-")]
    assert len(drawings) == 3
    assert {one["aria-labelledby"] for one in drawings} <= set(page.ids)
    for one in summary["configurations"]:
        assert page.text.count(f"{percent(one['accuracy'])} ({percents(one['interval'])}) at") >= 3


def test_every_dot_tells_what_it_is(page, summary):
    """To the keyboard and to those who listen; in a browser the same is shown."""
    told = [one["aria-label"] for _, one in page.attributes if one.get("class") == "vtprune-dot"]
    focusable = [one for _, one in page.attributes if one.get("class") == "vtprune-dot" and one["tabindex"] == "0"]
    assert len(told) == len(focusable) == 3 * len(summary["configurations"])
    for one in summary["configurations"][1:]:
        (found,) = [
            text
            for text in told
            if text.startswith(f"{one['method']}: budget: {one['keep']};") and "visual tokens" in text
        ]
        assert f"right answers: {words.percent(one['accuracy'])}; 95 % interval: {percents(one['interval'])};" in found
        tokens = words.short(one["visual_tokens_mean"])
        assert found.endswith(f"visual tokens: {words.percent(one['visual_tokens_share'])} ({tokens})")


def test_figures_are_those_of_the_summary(page, summary):
    for one in summary["configurations"]:
        row = row_of(page, one["name"], 10)
        assert percent(one["accuracy"]) in row[1]
        assert percents(one["interval"]) in row[1]
        if one["against_unpruned"]:
            assert points(one["against_unpruned"]["difference"]) in row[2]
            assert point_range(one["against_unpruned"]["interval"]) in row[2]
            assert percent(one["fidelity"]["agreement"]) in row[3]
        assert words.amount(one["prefill_flops_mean"]).replace(words.NBSP, " ") in row[5]
        for cell, view in ((4, "tokens"), (5, "flops"), (7, "ttft")):
            assert ("◆" in row[cell]) == one["pareto"][view]


def test_kinds(page, summary):
    asked = summary["configurations"][0]["kinds"]
    start = next(i for i, row in enumerate(page.cells) if row[1:] == [f"{kind} ({asked[kind]['n']})" for kind in asked])
    for row, one in zip(page.cells[start + 1 :], summary["configurations"], strict=False):
        assert row[0] == one["name"]
        for cell, kind in zip(row[1:], asked, strict=True):
            assert cell.startswith(percent(one["kinds"][kind]["accuracy"]))


def test_headline(page, summary):
    one = next(x for x in summary["configurations"] if x["name"] == "divprune@0.25")
    against = one["against_unpruned"]
    assert (
        f"divprune with a quarter of the visual tokens answers {percent(one['accuracy'])} right (unpruned "
        f"{percent(summary['configurations'][0]['accuracy'])}; difference {points(against['difference'])} points, "
        f"95 % interval {point_range(against['interval'])}); first token after {percent(one['ttft_share'], 0)} of the "
        "time."
    ) in page.text


def test_headline_of_what_keeps_all_tokens(tmp_path):
    folder = write_folder(tmp_path / "run", ["h2o"], [0.5, 0.1])
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    for one in summary["configurations"]:
        one["visual_tokens_share"] = 1.0
    path.write_text(json.dumps(summary))
    assert "h2o with 28 % of the KV cache answers" in Page(write_report(folder)).text


def test_changed_answers_are_counted_and_shown(page, folder):
    records = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    unpruned = {one["index"]: one for one in records if one["configuration"] == "unpruned"}
    changed = [one for one in records if one["configuration"] == "fastv:layer=2@0.1" and one["agrees"] is False]
    lost = sum(one["score"] < unpruned[one["index"]]["score"] for one in changed)
    gained = sum(one["score"] > unpruned[one["index"]]["score"] for one in changed)
    assert lost
    said = [f"{lost} lost"] + ([f"{gained} gained"] if gained else [])
    assert f"fastv:layer=2@0.1 {', '.join(said)}" in page.text
    pictures = [one["src"] for tag, one in page.attributes if tag == "img"]
    assert len(pictures) == sum(one["picture"] is not None for one in records)
    assert all(one.startswith("data:image/jpeg;base64,") for one in pictures)
    assert all(one["alt"] for tag, one in page.attributes if tag == "img")


def test_failures_settings_and_command(page, summary):
    assert "2 of 40 questions failed" in page.text
    assert ["q0", "fastv:layer=2@0.1", summary["errors"][0]["error"]] in page.cells
    assert "vtprune eval --model tiny-llava --suite scenes" in page.text
    assert "Example CPU" in page.text
    assert "22 November 2026" in page.text


def test_the_same_run_makes_the_same_page(folder, tmp_path, page):
    assert write_report(folder, tmp_path / "new" / "other.html").read_text() == page.source


def test_without_right_answers_quality_is_agreement(tmp_path):
    folder = write_folder(tmp_path / "run", judged=False)
    page, summary = Page(write_report(folder)), json.loads((folder / "summary.json").read_text())
    one = next(x for x in summary["configurations"] if x["name"] == "divprune@0.25")
    assert f"answers {percent(one['fidelity']['agreement'])} of the questions as the unpruned model does" in page.text
    assert "same answer as unpruned, %" in page.text
    assert "difference, points" not in page.text
    assert "lost" not in page.text


def test_one_question_one_configuration(tmp_path):
    page = Page(write_report(write_folder(tmp_path / "run", ["divprune"], [0.5], n=1)))
    assert "1 question " in page.text


def test_nothing_but_the_unpruned_model(tmp_path):
    page = Page(write_report(write_folder(tmp_path / "run", [], [], n=3)))
    assert "svg" not in page.tags
    assert "Nothing was pruned" in page.text


def test_details_notes_and_malformed_lines(tmp_path):
    folder = write_folder(tmp_path / "run", ["divprune"], [0.5])
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["malformed"] = ["line 7: no <question>"]
    summary["configurations"][1]["notes"] = ["2 pictures had too few tokens"]
    for one, recall in zip(summary["configurations"], (0.75, 0.5), strict=True):
        one["details"] = {"recall": recall, "yes_share": 0.125}
    path.write_text(json.dumps(summary))
    page = Page(write_report(folder))
    assert ["divprune@0.5", "0.50", "0.12"] in page.cells
    assert "divprune@0.5: 2 pictures had too few tokens" in page.text
    assert "line 7: no <question>" in page.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", None, "no config.json"),
        ("summary.json", None, "not finished"),
        ("summary.json", "{", "is not JSON"),
        ("summary.json", "[]", "must hold a JSON object, got list"),
        ("summary.json", '{"format": 2}', "has format 2, and this version of vtprune reads format 1"),
        ("questions.jsonl", "{}\n", "line 1, is no record"),
    ],
)
def test_refusals(tmp_path, name, content, said):
    folder = write_folder(tmp_path / "run", ["divprune"], [0.5], n=2)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_questions_out_of_order_are_refused(tmp_path):
    folder = write_folder(tmp_path / "run", ["divprune"], [0.5], n=3)
    path = folder / "questions.jsonl"
    path.write_text("".join(f"{line}\n" for line in reversed(path.read_text().splitlines())))
    with pytest.raises(ValueError, match="not in order: question 1 is behind 2"):
        write_report(folder)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        write_report(tmp_path / "nowhere")
