"""The page as visitors see it."""

from __future__ import annotations

import json

import pytest

from vtprune.models import shipped_example


def answers(visitor):
    return [visitor.locator(f"#answer-{which} textarea").input_value() for which in ("unpruned", "pruned")]


def asked(visitor):
    visitor.locator("#ask-overlay img, #ask-sheet img").first.wait_for()
    return answers(visitor)


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_ask(visit, width, theme):
    visitor = visit(width, theme)
    visitor.press("Ask")
    assert asked(visitor) == ["red", "red"]
    bars = visitor.locator("#ask-bars tbody tr")
    assert bars.locator("th").all_inner_texts() == [
        "Visual tokens",
        "Prefill FLOPs",
        "KV cache",
        "Time to first token",
        "Decoding",
    ]
    assert bars.first.inner_text().split() == ["Visual", "tokens", "256", "64", "25%"]
    visitor.shoot(f"ask-{width}-{theme}")
    assert visitor.evaluate("document.documentElement.scrollWidth") <= width, "it must be scrolled sideways"


def test_a_result_is_shared(visit, tmp_path):
    visitor = visit()
    visitor.press("Ask")
    asked(visitor)
    visitor.locator("#ask-share > button").click()
    visitor.get_by_text("vtprune run --model tiny-llava --image example:scene-1.png").wait_for()
    visitor.get_by_text("vtprune.run.compare(").wait_for()
    visitor.shoot("share")
    with visitor.expect_download() as download:
        visitor.locator("#ask-share").get_by_text("Download the result as JSON").click()
    download.value.save_as(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["answer"] == "red"


def test_ask_about_a_clip(visit):
    visitor = visit()
    visitor.get_by_label("Model", exact=True).click()
    visitor.get_by_role("option", name="tiny-qwen2.5-vl").click()
    visitor.locator("#examples button").nth(6).click()
    visitor.locator("#panel video").wait_for()
    visitor.press("Ask")
    unpruned, pruned = asked(visitor)
    assert unpruned
    assert pruned
    visitor.shoot("ask-clip")


def test_a_model_that_takes_no_clips_says_so(visit):
    visitor = visit()
    visitor.locator("#examples button").nth(6).click()
    visitor.locator("#panel video").wait_for()
    visitor.press("Ask")
    visitor.get_by_text("for clips choose tiny-qwen2.5-vl").first.wait_for()
    visitor.locator("#ask-stop[disabled]").wait_for()
    visitor.shoot("message")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_compare(visit, theme):
    visitor = visit(theme=theme)
    visitor.tab("Compare")
    visitor.press("Compare")
    visitor.get_by_text("give the unpruned model's answer").wait_for()
    cards = visitor.locator("#compare-cards article")
    assert cards.locator("h3").all_inner_texts() == [
        "unpruned",
        "divprune, keep=0.25",
        "fastv:layer=2, keep=0.25",
        "tome, keep=0.25",
        "random, keep=0.25",
    ]
    assert cards.locator("img").count() == 5
    dots = visitor.locator("#compare-ttft .vtprune-dot")
    assert dots.count() == 5
    dots.nth(1).focus()
    assert dots.nth(1).locator(".told").is_visible()
    visitor.shoot(f"compare-{theme}")


def test_explore_follows_its_sliders(visit):
    visitor = visit()
    visitor.tab("Explore")
    tokens, picture = visitor.locator("#explore-bars tbody tr").first, visitor.locator("#explore-overlay img")
    tokens.get_by_text("25%").wait_for()
    visitor.shoot("explore")
    before = picture.get_attribute("src")
    visitor.locator("#explore-keep input[type=number]").fill("0.5")
    tokens.get_by_text("50%").wait_for()
    assert picture.get_attribute("src") != before
    before = picture.get_attribute("src")
    visitor.locator("#explore-layer input[type=range]").press("ArrowRight")
    visitor.get_by_text("fastv:layer=3, keep=0.5").first.wait_for()
    assert picture.get_attribute("src") != before


def test_a_wrong_file_is_told(visit, tmp_path):
    visitor = visit()
    wrong = tmp_path / "holiday.png"
    wrong.write_text("not a picture at all")
    visitor.locator("#panel").get_by_label("Remove Image").click()
    visitor.locator("#panel input[type=file]").first.set_input_files(wrong)
    visitor.locator("#panel .image-frame img, #panel img[src*='holiday']").first.wait_for(state="attached")
    visitor.press("Ask")
    message = visitor.get_by_text("holiday.png")
    message.first.wait_for()
    assert "/tmp" not in visitor.locator("body").inner_text()
    visitor.shoot("wrong-file")


def test_two_visitors_do_not_see_each_other(visit):
    one, other = visit(), visit()
    other.locator("#examples button").nth(1).click()
    other.locator("#ideas button").nth(2).click()
    other.wait_for_function("document.querySelector('#question textarea').value.startsWith('Which character')")
    for visitor in (one, other):
        visitor.press("Ask")
    assert asked(one) == ["red", "red"]
    assert asked(other)[0] == "C"
    assert one.locator("#ask-bars tbody tr").count() == other.locator("#ask-bars tbody tr").count() == 5


def test_the_keyboard_is_enough(visit):
    visitor = visit()
    visitor.get_by_label("Model", exact=True).focus()
    for _ in range(80):
        visitor.keyboard.press("Tab")
        if visitor.evaluate("document.activeElement.id || document.activeElement.closest('button')?.id") == "ask-go":
            break
    else:
        pytest.fail("the Tab key does not reach the button")
    visitor.keyboard.press("Enter")
    assert asked(visitor) == ["red", "red"]


def test_all_controls_have_names(visit):
    visitor = visit()
    for tab in ("Ask", "Compare", "Explore", "Trade-offs", "Methods"):
        visitor.tab(tab)
        nameless = visitor.evaluate(
            """() => [...document.querySelectorAll('input, textarea, select, button')]
            .filter(one => one.offsetParent && !(one.labels?.length || one.ariaLabel || one.title ||
                one.getAttribute('aria-labelledby') || one.innerText?.trim() || one.closest('label')))
            .map(one => one.outerHTML.slice(0, 120))"""
        )
        assert not nameless, tab


def test_examples_are_the_shipped_ones(visit):
    visitor = visit()
    assert visitor.locator("#examples button.thumbnail-item").count() == 8
    assert shipped_example("scene-2.png")[0].is_file()


def test_a_question_is_typed(visit):
    visitor = visit()
    visitor.get_by_label("Question").fill("Can you see a red circle?")
    visitor.press("Ask")
    assert asked(visitor)[0] == "yes"


def test_what_chains_leave_place_by_place(visit):
    visitor = visit()
    visitor.locator("#tabs button", has_text="Parameters").first.click()
    written = visitor.get_by_label("Method as the command line writes it")
    written.fill("tome:keep=0.5+fastv:layer=2;keep=0.25")
    written.press("Enter")
    visitor.get_by_text("chain", exact=False).first.wait_for()
    visitor.wait_for_timeout(500)
    visitor.press("Ask")
    asked(visitor)
    figures = visitor.locator("#ask-steps figure")
    assert figures.count() == 3
    assert "tome" in figures.nth(1).inner_text()
    assert "fastv" in figures.nth(2).inner_text()
    visitor.shoot("ask-chain")


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_methods_are_found(visit, width, theme):
    visitor = visit(width, theme)
    visitor.tab("Methods")
    visitor.get_by_text("54 of 54 methods").wait_for()
    visitor.get_by_role("textbox", name="Search").fill("fastv")
    visitor.wait_for_function(
        "[...document.querySelectorAll('#methods article')].filter(one => one.offsetParent).length < 10"
    )
    assert "fastv" in visitor.locator("#methods article h3").all_inner_texts()
    visitor.shoot(f"methods-{width}-{theme}")
    assert visitor.evaluate("document.documentElement.scrollWidth") <= width, "it must be scrolled sideways"


def test_no_method_at_all(visit):
    visitor = visit()
    visitor.locator("#ask").get_by_role("button", name="Clear").first.click()
    visitor.wait_for_function("!document.querySelector('.vtprune-about p')")
    visitor.press("Ask")
    visitor.get_by_text("method must name at least one method").first.wait_for()


def test_a_picture_is_taken(visit):
    visitor = visit()
    visitor.get_by_label("Capture from camera").click()
    visitor.get_by_text("Click to Access Webcam").click()
    visitor.wait_for_function("document.querySelector('#panel video')?.currentTime > 0.2")
    visitor.get_by_label("capture photo").click()
    visitor.locator("#panel .image-frame img").wait_for()
    visitor.press("Ask")
    assert asked(visitor)[0]
    visitor.shoot("webcam")
