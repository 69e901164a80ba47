"""The README's list of methods is made from the registry: `python -m tests.test_readme` writes it anew."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from vtprune.evals.methods_page import NOTES, read_notes
from vtprune.methods import get_method

README = Path(__file__).parent.parent / "README.md"
PART = re.compile(r"(<!-- methods:begin -->\n).*?(<!-- methods:end -->)", re.DOTALL)


def method_list() -> str:
    """The groups of docs/methods.md, with one line per method: what it does, where, and its paper with a link."""
    lines = []
    for group in read_notes(README.parent / "docs" / NOTES)["groups"]:
        lines += [f"**{group['title']}**", ""]
        for name in group["methods"]:
            cls = get_method(name)
            module = inspect.getmodule(cls)
            does = (module.__doc__ or "").strip().splitlines()[0]
            paper = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", cls.paper)
            places = ", ".join(place.value for place in cls.places)
            lines.append(f"- [`{name}`](docs/methods.md#{name}) ({places}): {does}{f' {paper}' if paper else ''}")
        lines.append("")
    return "\n".join(lines)


def updated(text: str) -> str:
    """The README with the current list."""
    return PART.sub(lambda match: match[1] + method_list() + match[2], text)


def test_the_list_of_methods_is_current():
    text = README.read_text()
    assert PART.search(text)
    assert updated(text) == text, "run: python -m tests.test_readme"


def test_every_path_in_the_readme_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert target.startswith("http") or (README.parent / target).exists(), target


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
    sys.stdout.write("README.md is current.\n")
