"""Every method that is offered can be explored: its tokens are selected and drawn, place by place."""

from __future__ import annotations

import re

import pytest

from vtprune.demo.drawn.drawing import as_jpeg, draw_kept, draw_untouched, tell_kept
from vtprune.demo.drawn.steps import draw_steps
from vtprune.demo.setting import Limits
from vtprune.demo.work.asking import select
from vtprune.demo.work.catalogue import catalogue, refusals
from vtprune.demo.work.chosen import read_chosen
from vtprune.demo.work.media import read_question
from vtprune.overlay import has_steps


@pytest.fixture(scope="module")
def about_clip(clip):
    return read_question("Which character is shown?", None, str(clip), Limits(frames=4))


@pytest.mark.parametrize("name", list(catalogue()))
@pytest.mark.parametrize("medium", ["picture", "clip"])
def test_every_method(models, question, about_clip, name, medium):
    loaded = models.get("tiny-llava" if medium == "picture" else "tiny-qwen2.5-vl")
    asked = question if medium == "picture" else about_clip
    chain = read_chosen(name, 0.25)
    if name in refusals(loaded, medium == "clip"):
        pytest.skip("is not offered")
    report = select(loaded, asked.inputs(loaded, 1), chain)
    drawn = draw_kept(loaded, asked, report, chain.label)
    assert drawn.height > draw_kept(loaded, asked, report, None).height
    steps = draw_steps(loaded, asked, report)
    assert bool(steps) == has_steps(report)
    said = [step.where for step in report.pictures[0].steps]
    assert all(where in steps for where in said) or not steps
    assert len(re.findall("<img ", steps)) == (len(said) + 1 if steps else 0)


def test_what_an_overlay_shows_is_told(llava, question, chain):
    told = tell_kept(select(llava, question.inputs(llava, 1), chain))
    assert told == '<p class="legend">64 of 256 visual tokens kept (25%); in colour: kept; grey: dropped.</p>'


def test_what_the_browser_gets(question):
    untouched = draw_untouched(question)
    assert max(untouched.size) == 480
    assert as_jpeg(untouched)[:3] == b"\xff\xd8\xff"
