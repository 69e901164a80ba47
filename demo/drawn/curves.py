"""A run as the page shows it: the plot, what it comes to, and its figures, as HTML."""

from __future__ import annotations

import base64
import json
from html import escape

from vtprune.demo.work.finished import title
from vtprune.evals.pages.headline import headlines
from vtprune.evals.pages.lines import View, make_panel
from vtprune.evals.pages.plots import draw_panel
from vtprune.evals.pages.render import render_table
from vtprune.evals.pages.runs import Run
from vtprune.evals.pages.tables import by_kind, overview

_HEADLINES = 4
_NOTE = (
    "Up and to the left is better. Bars and the grey band: 95 % intervals. Filled marks are on the Pareto front: "
    "nothing cheaper is as good. Point at a mark, or go to it with the Tab key, and it tells what it is."
)
_BELOW = (
    "Small: 95 % intervals, or shares of the unpruned model's cost. Differences are to the unpruned model, on the same "
    "questions; bold where the interval leaves out 0. ◆ on the Pareto front."
)


def draw_curves(run: Run, view: View) -> str:
    """Quality against a cost; each dot tells what it is.

    Args:
        run: What is drawn; it need not be finished.
        view: The cost.
    """
    panel = make_panel([("", run)])
    if not panel.lines:
        return "<p>There is nothing to draw: no question was answered under a method.</p>"
    said = "".join(f"<li>{escape(one)}</li>" for one in headlines(run)[:_HEADLINES])
    return (
        f"<h3>{escape(title(run))}</h3>"
        f'<div class="curves">{draw_panel(panel, view, "tradeoffs")}<div><ul>{said}</ul><p>{_NOTE}</p></div></div>'
    )


def tell_figures(run: Run) -> str:
    """The same as tables, and the summary as a file.

    Args:
        run: What is told; it need not be finished.
    """
    kinds = by_kind(run)
    parts = [
        render_table(overview([("", run)], make_panel([("", run)])), "All configurations"),
        f"<p>{_BELOW}</p>",
        _folded("By kind of question", render_table(kinds, "By kind of question")) if kinds else "",
        f'<p><a download="summary.json" href="{_as_file(run)}">Download summary.json</a></p>',
    ]
    return f'<div class="figures">{"".join(parts)}</div>'


def _folded(head: str, content: str) -> str:
    return f"<details><summary>{head}</summary>{content}</details>"


def _as_file(run: Run) -> str:
    """Within the page, so that the server hands out no files."""
    document = json.dumps(run.summary, indent=1, ensure_ascii=False).encode()
    return f"data:application/json;base64,{base64.b64encode(document).decode('ascii')}"
