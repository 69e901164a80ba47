"""Bars are true to their numbers, and hold nothing that a visitor could smuggle in."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from vtprune.demo.drawn.bars import Bar, draw_bars, saved, timed
from vtprune.demo.drawn.side_by_side import draw_cards
from vtprune.demo.work.answering import Answer
from vtprune.demo.work.asking import Asked, select
from vtprune.demo.work.comparing import Entry
from vtprune.demo.work.measuring import Times


def test_widths_are_shares_of_the_longer_one():
    drawn = draw_bars([Bar("Visual tokens", 200, 50, "{:,.0f}")], "divprune")
    assert re.findall(r"width:([\d.]+)%", drawn) == ["100.0", "25.0"]
    assert ">25%<" in drawn
    drawn = draw_bars([Bar("Decoding", 20, 30, "{:.1f} tokens/s", is_speed=True, more_is_better=True)], "divprune")
    assert re.findall(r"width:([\d.]+)%", drawn) == ["66.7", "100.0"]
    assert "1.50×" in drawn


def test_a_time_that_halves_is_twice_as_fast():
    assert "2.00×" in draw_bars([Bar("Time to first token", 80, 40, "{:.1f} ms", is_speed=True)], "divprune")


def test_what_was_saved(llava, question, chain):
    report = select(llava, question.inputs(llava, 1), chain)
    tokens, flops, held = saved(report)
    assert (tokens.before, tokens.after) == (256, 64)
    assert flops.words.format(flops.before) == "2.89 G"
    assert held.words.format(held.before) == "2.4 MiB"
    assert flops.after / flops.before == pytest.approx(report.prefill_flops_after / report.prefill_flops_before)


def test_times_are_shown_once_they_are_known():
    assert timed(Asked()) == []
    asked = Asked(times=(Times(80.0, 10.0, 3), Times(40.0, None, 3)))
    assert [bar.name for bar in timed(asked)] == ["Time to first token"]


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def test_what_models_and_visitors_write_is_text():
    evil = "<script>alert(1)</script>"
    entries = [Entry(None, evil), Entry(None, evil, error=evil)]
    tags = _Tags()
    tags.feed(draw_cards(entries, [None, None]) + draw_bars([Bar("x", 1, 1, "{}")], evil))
    assert "script" not in tags.found
    assert Answer(evil).text == evil
