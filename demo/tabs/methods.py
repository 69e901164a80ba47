"""The tab of all methods: what each does, where, by whom, and with which parameters."""

from __future__ import annotations

import gradio as gr

from vtprune.demo.drawn import cards
from vtprune.demo.setting import Setting
from vtprune.demo.tabs.events import AT_ONCE

_COPY = """
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  getSelection().selectAllChildren(button.previousElementSibling);
  if (!navigator.clipboard) return;  // pages that are not served securely may not write to it
  await navigator.clipboard.writeText(button.dataset.copy);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});
"""


def methods_tab(setting: Setting) -> None:
    """Lay out the tab inside the current Blocks.

    Args:
        setting: What the demo was started with.
    """
    with gr.Row():
        search = gr.Textbox(
            label="Search", placeholder="a name, a word, a paper", scale=2, min_width=240, max_length=200
        )
        place = gr.Dropdown([("anywhere", cards.ANY), *cards.places()], value=cards.ANY, label="Place")
        kind = gr.Dropdown([("any", cards.ANY), *cards.kinds()], value=cards.ANY, label="Kind")
    count = gr.HTML(cards.only(cards.matching()), elem_classes="vtprune-flush", apply_default_css=False)
    gr.HTML(cards.cards(), elem_classes="vtprune-flush", js_on_load=_COPY, apply_default_css=False)
    gr.on(
        [search.change, place.input, kind.input],
        lambda *asked: cards.only(cards.matching(*asked)),
        [search, place, kind],
        count,
        trigger_mode="always_last",
        **AT_ONCE,
    )
