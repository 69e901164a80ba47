"""From a template to a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtprune.evals.pages.lines import VIEWS, Panel
from vtprune.evals.pages.plots import NAMES, draw_panel
from vtprune.evals.pages.tables import Table
from vtprune.evals.table import write_whole

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, out: Path, **content: Any) -> Path:
    """Fill a template and write the page; texts are escaped.

    Args:
        template: Its file's name.
        out: The page; what was there is replaced as a whole.
        content: What the template asks for.

    Raises:
        OSError: The file cannot be written.
    """
    write_whole(out, _environment().get_template(template).render(content))
    return out


def render_table(table: Table, label: str) -> str:
    """A table as HTML; texts are escaped.

    Args:
        table: What it holds.
        label: What it is called, for those who cannot see it.
    """
    return str(_environment().get_template("macros.html").module.table(table, label))  # type: ignore[attr-defined]


def draw_all(panel: Panel, key: str) -> list[tuple[str, Any]]:
    """The plots of a panel with their titles, as they stand on a page; none if it has no lines.

    Args:
        panel: What is drawn.
        key: What all ids begin with.
    """
    from markupsafe import Markup

    views = VIEWS if panel.lines else ()
    return [(f"Against {NAMES[view]}", Markup(draw_panel(panel, view, f"{key}-{view}"))) for view in views]


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(name: str) -> Any:
    """A long name, which may go on in a new line behind its signs."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.findall(r"[^:+,;@]*[:+,;@]|[^:+,;@]+", name))
