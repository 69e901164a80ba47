"""The curves in a real browser: marks tell what they are, and evaluations grow, stop and stay with their visitor."""

from __future__ import annotations

import json

import pytest

from tests.evals.pages.folders import write_folder
from vtprune.evals.pages.report import write_report

EXAMPLE = "Example: tiny-llava, 300 questions of scenes"


def open_tab(visitor):
    visitor.tab("Trade-offs")
    visitor.locator("#tradeoffs-plot svg").wait_for()


def start(visitor, questions):
    """An evaluation of the methods that are filled in."""
    visitor.get_by_text("Evaluate methods of your choice").click()
    count = visitor.locator("#tradeoffs-quick input[type=number]")
    count.fill(str(questions))
    count.press("Enter")
    visitor.press("Evaluate")


def ended(visitor):
    visitor.locator("#tradeoffs-status").get_by_text("Done:").or_(
        visitor.locator("#tradeoffs-status").get_by_text("Stopped after")
    ).wait_for()
    return visitor.locator("#tradeoffs-status [role=status]").inner_text()


def run(visitor):
    return visitor.locator("#tradeoffs-runs input").input_value()


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_the_shipped_run(visit, width, theme):
    visitor = visit(width, theme)
    open_tab(visitor)
    assert run(visitor) == EXAMPLE
    visitor.locator("#tradeoffs-view").get_by_text("prefill FLOPs").click()
    visitor.locator("#tradeoffs-plot").get_by_text("prefill FLOPs, % of").wait_for()
    dot = visitor.locator("#tradeoffs-plot .vtprune-dot").nth(1)
    assert not dot.locator(".told").is_visible()
    dot.locator("polygon").hover()
    assert dot.locator(".told").is_visible()
    visitor.shoot(f"tradeoffs-{width}-{theme}")
    assert visitor.evaluate("document.documentElement.scrollWidth") <= width, "it must be scrolled sideways"
    with visitor.expect_download() as download:
        visitor.get_by_text("Download summary.json").click()
    assert json.loads(download.value.path().read_text())["n"] == 300


def test_an_evaluation_of_ones_own(visit):
    visitor, other = visit(), visit()
    for one in (visitor, other):
        open_tab(one)
    start(visitor, 8)
    visitor.locator("#tradeoffs-status").get_by_text("4 of 8 questions").wait_for()
    visitor.shoot("evaluating")
    assert "Done: 8 of 8 questions" in ended(visitor)
    visitor.locator("#tradeoffs-plot h3").get_by_text("tiny-llava, 8 questions of scenes").wait_for()
    assert run(visitor).startswith("Yours 1")
    visitor.get_by_text("vtprune eval --model tiny-llava --suite scenes").wait_for()
    visitor.locator("#tradeoffs-runs input").click()
    visitor.get_by_role("option", name="Example").click()
    visitor.locator("#tradeoffs-plot h3").get_by_text("300 questions").wait_for()
    other.locator("#tradeoffs-runs input").click()
    assert [one.get_attribute("aria-label") for one in other.get_by_role("option").all()] == [EXAMPLE]


def test_an_evaluation_is_stopped(visit, served):
    visitor = visit()
    open_tab(visitor)
    start(visitor, 100)
    visitor.locator("#tradeoffs-status").get_by_text("4 of 100 questions").wait_for()
    visitor.locator("#tradeoffs-stop").click()
    assert "Stopped after" in ended(visitor)
    visitor.locator("#tradeoffs-stop[disabled]").wait_for()
    assert not list(served.setting.scratch.glob("evaluation-*"))


def test_what_is_wrong_is_told(visit):
    visitor = visit()
    open_tab(visitor)
    visitor.get_by_text("Evaluate methods of your choice").click()
    methods = visitor.locator("#tradeoffs-quick input").first
    methods.fill("divprune:laye=2")
    methods.press("Enter")
    visitor.press("Evaluate")
    visitor.get_by_text("method 'divprune' has no parameter 'laye'").first.wait_for()
    assert run(visitor) == EXAMPLE


def test_marks_of_a_report(browser, tmp_path):
    """By pointer and by keyboard; boxes stay within their plot, and nothing of it is printed."""
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(write_report(write_folder(tmp_path / "run")).as_uri())
    dots = page.locator("figure").first.locator(".vtprune-dot")
    dots.nth(2).locator("polygon").hover()
    assert dots.nth(2).locator(".told").is_visible()
    dots.nth(3).focus()
    assert not dots.nth(3).locator(".told").is_visible()  # one box at a time
    page.mouse.move(0, 0)
    assert dots.nth(3).locator(".told").is_visible()
    page.keyboard.press("Tab")
    assert not dots.nth(3).locator(".told").is_visible()
    assert dots.nth(4).locator(".told").is_visible()
    cut_off = page.evaluate(
        """() => [...document.querySelectorAll('.told')].filter(told => {
            const [box, plot] = [told.querySelector('rect'), told.ownerSVGElement].map(x => x.getBoundingClientRect());
            const right = Math.max(...[...told.querySelectorAll('text')].map(x => x.getBoundingClientRect().right));
            return box.left < plot.left || box.right > plot.right || box.top < plot.top || box.bottom > plot.bottom ||
                right > box.right;
        }).length"""
    )
    assert cut_off == 0
    page.emulate_media(media="print")
    assert not dots.nth(4).locator(".told").is_visible()
    page.close()
