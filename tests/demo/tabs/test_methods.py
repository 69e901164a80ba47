"""The cards of all methods, without a browser."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import gradio as gr
import pytest

import vtprune
from vtprune.demo.drawn import cards
from vtprune.demo.tabs.methods import methods_tab
from vtprune.methods import Place, method_names


class Outline(HTMLParser):
    """Counts tags, and complains if they are not closed in turn."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def outline(text):
    found = Outline()
    found.feed(text)
    assert not found.open
    return found


def test_there_is_a_card_for_every_method():
    found = outline(cards.cards())
    ids = [attributes["id"] for tag, attributes in found.seen if tag == "article"]
    assert sorted(ids) == [f"vtprune-method-{name}" for name in method_names()]
    named = {attributes["aria-labelledby"] for tag, attributes in found.seen if tag == "article"}
    assert named == {attributes["id"] for tag, attributes in found.seen if tag == "h3"}


@pytest.mark.parametrize("name", method_names())
def test_a_card_says_what_the_registry_says(name):
    (method,) = vtprune.methods(name)
    card = re.search(rf'<article id="vtprune-method-{name}".*?</article>', cards.cards())[0]
    said = html.unescape(re.sub("<[^>]*>", "", card))
    assert method["does"] in said
    assert method["cost"].replace("`", "") in said
    assert f"Parameters ({len(method['parameters'])})" in said
    assert all(f"{key}={default!r}" in said for key, default in method["parameters"].items())
    assert all(reason in said for reason in method["refuses"].values())
    assert not method["arxiv"] or f'href="https://arxiv.org/abs/{method["arxiv"]}"' in card


def test_how_a_method_is_used():
    assert cards.usage(vtprune.methods("tome")[0]) == 'vtprune.apply(model, "tome", keep=0.25)'
    assert cards.usage(vtprune.methods("exit")[0]) == 'vtprune.apply(model, "exit")'
    assert 'data-copy="vtprune.apply(model, &quot;exit&quot;)"' in cards.cards()


def test_what_a_card_says_is_escaped(monkeypatch):
    method = {**vtprune.methods("tome")[0], "does": "<script>1</script> & `x < y`", "cost": "<b>"}
    monkeypatch.setattr(cards, "catalogue", lambda: {"tome": method})
    text = cards.cards()
    assert "&lt;script&gt;1&lt;/script&gt; &amp;" in text
    assert "<script>" not in text
    assert "<b>" not in text


@pytest.mark.parametrize(
    ("search", "place", "kind", "some", "others"),
    [
        ("TOME", "", "", {"tome"}, {"fastv"}),
        ("2403.06764", "", "", {"fastv"}, {"tome"}),
        ("determinantal question", "", "", {"cdpruner"}, {"divprune"}),
        ("", "decoder cache", "", {"snapkv"}, {"fastv", "tome"}),
        ("", "", "frequency", {"fourier"}, {"tome"}),
        ("", "encoder output", "merging", {"visionzip"}, {"tome", "divprune"}),
        ("needs training", "", "", {"dyvte"}, {"divprune"}),
        ("recycled", "", "", {"sparsevlm"}, {"divprune"}),
    ],
)
def test_looking_for_methods(search, place, kind, some, others):
    found = set(cards.matching(search, place, kind))
    assert some <= found
    assert not others & found


def test_only_what_was_found_is_shown():
    assert (
        cards.only(cards.matching()) == f'<p role="status">{len(method_names())} of {len(method_names())} methods</p>'
    )
    text = cards.only(["tome", "turbo"])
    assert "2 of" in text
    assert "#vtprune-method-fastv," in text
    assert "#vtprune-method-tome," not in text
    assert "No method" in cards.only(cards.matching("no such thing"))


def test_filters_know_all_places_and_kinds():
    assert set(cards.places()) == {place for one in vtprune.methods() for place in one["places"]}
    assert cards.places()[0] == Place.ENCODER_INPUT.value
    assert set(cards.kinds()) == {one["kind"] for one in vtprune.methods()}


def test_the_tab_has_labelled_controls_and_nothing_from_elsewhere(setting):
    with gr.Blocks(analytics_enabled=False) as page:
        methods_tab(setting)
    props = [x["props"] for x in page.config["components"] if x["type"] in ("textbox", "dropdown")]
    assert [x["label"] for x in props] == ["Search", "Place", "Kind"]
    assert {x["api_visibility"] for x in page.config["dependencies"]} == {"private"}
    assert not re.search(r"""(?:src|@import|url\()\s*=?\s*["']?http""", cards.cards())
