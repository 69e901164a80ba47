"""What the plots of a page are drawn on: column width, letters of 8 pt, the legend below, dots that tell what they are.

Colours are Okabe and Ito's, which people with any kind of colour vision tell apart; shapes and strokes tell lines apart
in print.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import textwrap
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from vtprune.evals.pages.svg import finish_svg
from vtprune.evals.pages.tips import Tip

WIDTH, HEIGHT = 3.4, 2.5
"""Inches, the height without the legend."""

LETTERS = 8
"""Points."""

GREY = "#595959"
"""Of the unpruned model."""

_LONGEST_LABEL = 44
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vtprune",  # the same ids every time
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": LETTERS,
    "axes.unicode_minus": True,
    "axes.linewidth": 0.6,
    "figure.facecolor": "none",  # the page's
    "axes.facecolor": "none",
}
_ONE_AT_A_TIME = threading.Lock()


class Sheet:
    """A figure with one pair of axes; see `new_sheet`."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        self.axes: Any = self._figure.subplots()
        self._legend: list[tuple[str, Any]] = []
        self._tips: dict[str, Tip] = {}

    def explain(self, label: str, handle: Any) -> None:
        """Add to the legend."""
        self._legend.append(("\n".join(textwrap.wrap(label, _LONGEST_LABEL)) or label, handle))

    def tell(self, dot: Any, tip: Tip) -> None:
        """What is told of a dot, a line of matplotlib with one point."""
        name = f"dot-{len(self._tips)}"
        dot.set_gid(name)
        self._tips[name] = tip

    def finish(self, key: str, title: str, description: str) -> str:
        """The sheet as an `<svg>` element, see `finish_svg`."""
        self.axes.tick_params(width=0.6, length=2.5)
        self.axes.grid(color="0.92", linewidth=0.6)
        self.axes.set_axisbelow(True)
        self.axes.spines[["top", "right"]].set_visible(False)
        labels = [label for label, _ in self._legend]
        columns = _columns(labels)
        self._figure.set_figheight(HEIGHT + (1.35 * LETTERS * max(map(_lines_of_text, columns)) + 6) / 72)
        self._figure.legend(
            [handle for _, handle in self._legend],
            labels,
            loc="outside lower center",
            ncols=len(columns),
            frameon=False,
            handlelength=2.4,
            columnspacing=1.2,
            labelspacing=0.25,
            borderpad=0.1,
        )
        file = io.StringIO()
        self._figure.savefig(file, format="svg", metadata={"Date": None})
        return finish_svg(file.getvalue(), key, title, description, self._tips)


@contextlib.contextmanager
def new_sheet() -> Iterator[Sheet]:
    """A sheet to be drawn on and finished within a `with` block; others wait, as the style of matplotlib is global."""
    import matplotlib

    with _ONE_AT_A_TIME, matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's own fonts have them
        yield Sheet()


def _columns(labels: Sequence[str]) -> list[list[str]]:
    """The legend's columns, as many as there is room for."""
    for count in range(min(3, len(labels)), 1, -1):
        rows, longer = divmod(len(labels), count)
        starts = [column * rows + min(column, longer) for column in range(count + 1)]
        columns = [list(labels[start:end]) for start, end in itertools.pairwise(starts)]
        widest = [max(len(part) for label in column for part in label.split("\n")) for column in columns]
        if LETTERS * sum(0.6 * letters + 4.3 for letters in widest) <= 72 * WIDTH:
            return columns
    return [list(labels)]


def _lines_of_text(labels: Sequence[str]) -> int:
    return sum(label.count("\n") + 1 for label in labels)
