"""The method picker, without a browser."""

from __future__ import annotations

import gradio as gr

from vtprune.demo.tabs.controls import method_list, method_picker
from vtprune.demo.work.catalogue import catalogue, offered, refusals


def test_a_picker_starts_with_a_method_and_a_budget():
    with gr.Blocks(analytics_enabled=False):
        picker = method_picker("Method", "divprune", 0.5)
    assert picker.methods.value == ["divprune"]
    assert picker.keep.value == 0.5
    assert picker.written.value == "divprune:keep=0.5"
    assert [name for _, name in picker.methods.choices] == list(catalogue())


def test_a_picker_starts_with_a_chain():
    with gr.Blocks(analytics_enabled=False):
        picker = method_picker(value="tome:r=4+exit", keep=0.5)
    assert picker.written.value == "tome:keep=0.5,r=4+exit"


def test_every_control_has_a_label_and_nothing_is_called_from_outside():
    with gr.Blocks(analytics_enabled=False) as page:
        method_picker()
        assert method_list("Methods").label == "Methods"
    parts = page.config["components"]
    wanted = [x["props"] for x in parts if x["type"] in ("dropdown", "slider", "number", "radio", "textbox")]
    assert len(wanted) >= 6
    assert all(props["label"] and props["show_label"] for props in wanted)
    assert {x["api_visibility"] for x in page.config["dependencies"]} <= {"private", "undocumented"}


def test_methods_that_do_not_suit_a_model_come_last_and_say_why(llava):
    reasons = refusals(llava, video=False)
    assert set(reasons) == {"dyvte", "evs", "holitom", "quota"}
    assert "clips" in reasons["evs"]
    assert "weights" in reasons["dyvte"]
    listed = offered(llava, video=False)
    assert {name for _, name in listed[-4:]} == set(reasons)
    assert all(label.endswith("(not here)") == (name in reasons) for label, name in listed)
    assert set(refusals(llava, video=True)) == set(catalogue()), "tiny-llava takes no clips"


def test_fitting_a_picker_to_a_model(llava):
    with gr.Blocks(analytics_enabled=False):
        picker = method_picker()
    methods, note = picker.fit(llava, video=False)
    assert [choice[1] for choice in methods.choices] == [name for _, name in offered(llava, False)]
    assert "4 methods do not work here" in note
    assert len(picker.fitted) == 2


def test_a_visitor_puts_a_chain_together():
    """The events of the page, as the browser sends them."""
    with gr.Blocks(analytics_enabled=False) as page:
        method_picker()
    chosen, _, edited = (one.fn for one in page.fns.values() if len(one.outputs) == 8)
    _, about, _, slider, _, drawn, agreed, written = chosen(["fastv"], "divprune", (0, ""), "share", 0.5, 64)
    assert (drawn, agreed, written) == ((1, "fastv:keep=0.5"), "fastv:keep=0.5", "fastv:keep=0.5")
    assert "attended to most" in about
    assert slider["value"] == 0.5
    names, _, unit, slider, number, drawn, _, _ = edited("exit+fastv:keep=32", agreed, drawn)
    assert names == ["exit", "fastv"]
    assert unit["value"] == "number"
    assert number["value"] == 32
    assert not slider["visible"]
    assert chosen([], agreed, drawn, "share", 0.5, None)[-1] == ""
    assert all(one == gr.skip() for one in chosen(["fastv"], agreed, drawn, "share", 0.5, 64)), "nothing is new"
    for text in (agreed, "fatsv", ""):
        assert all(one == gr.skip() for one in edited(text, agreed, drawn)), "nothing is new, or it is wrong"
