"""What every place of a chain left, panel by panel, as HTML."""

from __future__ import annotations

from html import escape

from vtprune.demo.drawn.drawing import as_data
from vtprune.demo.work.media import Question
from vtprune.models import Loaded
from vtprune.overlay import has_steps, step_panels
from vtprune.report import Report


def draw_steps(loaded: Loaded, question: Question, report: Report) -> str:
    """The tokens before the methods and behind each place at which they act; "" where there is one place only.

    Args:
        loaded: Model and processor.
        question: What was asked.
        report: What was saved.
    """
    if not has_steps(report):
        return ""
    panels = [
        panel for picture in report.pictures for panel in step_panels(question.medium, picture, question.region(loaded))
    ]
    figures = "".join(
        f'<figure><img src="{as_data(drawn)}" alt="{escape(said)}"><figcaption>{_lines(said)}</figcaption></figure>'
        for drawn, said in panels
    )
    wide = " wide" if question.is_video else ""
    return f'<section class="steps{wide}"><h3>Place by place</h3><div>{figures}</div></section>'


def _lines(said: str) -> str:
    first, _, rest = said.partition("\n")
    return f"<b>{escape(first)}</b><br>{escape(rest)}"
