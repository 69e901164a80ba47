"""From a template to a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vtprune.evals.table import write_whole

_TEMPLATES = Path(__file__).parent / "templates"


def check_libraries() -> None:
    """Say so early if a page could not be made.

    Raises:
        ValueError: matplotlib or jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name} is missing, which pages are made with: pip install 'vtprune[eval]'.") from None


def render(template: str, out: Path, **content: Any) -> Path:
    """Fill a template and write the page; texts are escaped.

    Args:
        template: Its file's name.
        out: The page; what was there is replaced as a whole.
        content: What the template asks for.

    Raises:
        ValueError: A library is missing.
        OSError: The file cannot be written.
    """
    check_libraries()
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
    write_whole(out, environment.get_template(template).render(content))
    return out


def svg(drawn: str) -> Any:
    """A plot, which is not escaped."""
    check_libraries()
    from markupsafe import Markup

    return Markup(drawn)


def _breakable(name: str) -> Any:
    """A long name, which may go on in a new line behind its signs."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.findall(r"[^:+,;@]*[:+,;@]|[^:+,;@]+", name))
