"""The page, and the server that shows it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils.fonts import LocalFont
from starlette.middleware import Middleware

from vtprune.demo.server.endpoints import endpoints
from vtprune.demo.server.gate import Gate
from vtprune.demo.server.page import Page
from vtprune.demo.setting import Setting
from vtprune.demo.tabs.ask import ask_tab
from vtprune.demo.tabs.compare import compare_tab
from vtprune.demo.tabs.explore import EXPLORE, explore_tab
from vtprune.demo.tabs.methods import methods_tab
from vtprune.demo.tabs.panel import question_panel
from vtprune.demo.tabs.tradeoffs import tradeoffs_tab

TITLE = "vtprune"


def build(setting: Setting) -> Page:
    """The page.

    Args:
        setting: What the demo was started with.
    """
    with Page(setting.limits, title=TITLE, analytics_enabled=False, fill_width=True) as page:
        stops = page.stops
        gr.HTML(
            "<h1>vtprune</h1><p>Vision-language models on fewer visual tokens: what that saves, and what it costs.</p>",
            elem_id="head",
        )
        with gr.Row(elem_id="main"):
            with gr.Column(scale=1, min_width=300, elem_id="panel"):
                panel = question_panel(setting)
            with gr.Column(scale=3, min_width=320), gr.Tabs(elem_id="tabs") as tabs:
                with gr.Tab("Ask", id="ask", elem_id="ask"):
                    ask_tab(setting, panel, stops)
                with gr.Tab("Compare", id="compare", elem_id="compare"):
                    compare_tab(setting, panel, stops)
                with gr.Tab(EXPLORE, id="explore", elem_id="explore"):
                    explore_tab(setting, panel, tabs)
                with gr.Tab("Trade-offs", id="tradeoffs", elem_id="tradeoffs"):
                    tradeoffs_tab(setting, panel.model, stops)
                with gr.Tab("Methods", id="methods", elem_id="methods"):
                    methods_tab(setting)
        endpoints(setting, stops)

        def leave(request: gr.Request) -> None:
            stops.leave(str(request.session_hash))

        page.unload(leave)
    return page


def launch(page: Page, setting: Setting, **options: Any) -> tuple[Any, str, str]:
    """Serve the page.

    Args:
        page: As `build` made it.
        setting: What it was made from.
        **options: Further ones of `gradio.Blocks.launch`.

    Returns:
        As `gradio.Blocks.launch`: application, local address, public address.
    """
    limits = setting.limits
    page.queue(max_size=limits.waiting, default_concurrency_limit=limits.at_once, api_open=False)
    folder = Path(str(resources.files("vtprune.demo.drawn")))
    return page.launch(
        theme=_theme(),
        css_paths=sorted(folder.glob("*.css")),
        max_file_size=limits.upload_mb * 2**20,
        # Answers and evaluations that wait for the model hold threads, and the one that has it needs some.
        max_threads=40 + 2 * limits.at_once,
        app_kwargs={"lifespan": page.served, "middleware": [Middleware(Gate, upload_mb=limits.upload_mb)]},
        ssr_mode=False,
        show_error=False,
        quiet=True,
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        footer_links=["api", "settings"],
        **options,
    )


def _theme() -> gr.themes.Base:
    # Fonts come with gradio. Of this one the semibold file lacks letters, the bold one is whole.
    letters = LocalFont("Source Sans Pro", weights=(400, 700))
    return gr.themes.Default(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        radius_size="sm",
        font=(letters, "ui-sans-serif", "system-ui", "sans-serif"),
    ).set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")  # dark enough to be read
