"""A card per method, as HTML, and the search among them. Knows nothing of Gradio."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from vtprune.demo.work.catalogue import catalogue
from vtprune.describe import LETTERS, describe_lines
from vtprune.methods.base import Place

ANY = ""
_ASIDE = ("authors' code", "differs from the paper in")
"""What a card says on demand only."""


def places() -> list[str]:
    """Where methods act, in the order in which a picture comes by."""
    acting = {place for one in catalogue().values() for place in one["places"]}
    return [place.value for place in Place if place.value in acting]


def kinds() -> list[str]:
    """Kinds of methods."""
    return list(dict.fromkeys(one["kind"] for one in catalogue().values()))


def matching(search: str = "", place: str = ANY, kind: str = ANY) -> list[str]:
    """Names of the methods that a visitor is looking for.

    Args:
        search: Words, all of which must occur in what a card says, in whatever case.
        place: Where they act; anywhere if empty.
        kind: Of what kind they are; of any if empty.
    """
    words = search.casefold().split()
    return [
        name
        for name, one in catalogue().items()
        if place in (ANY, *one["places"]) and kind in (ANY, one["kind"]) and all(word in _said(name) for word in words)
    ]


def cards() -> str:
    """The cards of all methods, and what the letters in their costs stand for."""
    letters = _details("What the letters in costs stand for", _list(LETTERS.items()))
    return f'<div class="vtprune-cards">{letters}{"".join(map(_card, catalogue().values()))}</div>'


def only(names: Sequence[str]) -> str:
    """A style sheet that leaves out the cards of all other methods, and how many there are, for screen readers too."""
    hidden = ",".join(f"#{_id(name)}" for name in catalogue() if name not in names)
    style = f"<style>{hidden}{{display:none}}</style>" if hidden else ""
    count = f"{len(names)} of {len(catalogue())} methods" if names else "No method says this; try fewer words."
    return f'{style}<p role="status">{count}</p>'


def usage(method: dict[str, Any]) -> str:
    """How to use a method in Python."""
    budget = ", keep=0.25" if "keep" in method["parameters"] else ""
    return f'vtprune.apply(model, "{method["name"]}"{budget})'


@functools.cache
def _said(name: str) -> str:
    """All that a card says, to search in."""
    method = catalogue()[name]
    about = [f"{key} {said}" for key, said in method["about_parameters"].items()]
    return " ".join([name, method["does"], *(said for _, said in describe_lines(method)), *about]).casefold()


def _id(name: str) -> str:
    return f"vtprune-method-{name}"


def _card(method: dict[str, Any]) -> str:
    lines = dict(describe_lines(method))
    kind, *notes = lines.pop("kind").split("; ")
    marks = [kind, *lines.pop("place").split(", ")]
    aside = {name: lines.pop(name) for name in _ASIDE if name in lines}
    if notes:
        lines = {"note": "; ".join(notes), **lines}
    name, call = escape(method["name"]), escape(usage(method))
    return "".join(
        [
            f'<article id="{_id(name)}" aria-labelledby="{_id(name)}-name">',
            f'<h3 id="{_id(name)}-name">{name}</h3>',
            f"<ul>{''.join(f'<li>{escape(mark)}</li>' for mark in marks)}</ul>",
            f"<p>{escape(method['does'])}</p>",
            _list(lines.items()),
            _details(f"Parameters ({len(method['parameters'])})", "".join(_parameters(method))),
            _details("Beside the paper", _list(aside.items())),
            _details(f"Does not work on {len(method['refuses'])} families", _refused(method["refuses"])),
            f'<div><code>{call}</code><button type="button" data-copy="{call}" ',
            f'aria-label="Copy how to use {name}">Copy</button></div></article>',
        ]
    )


def _refused(reasons: dict[str, str]) -> str:
    """Families that a method does not work on, by the reason."""
    families: dict[str, list[str]] = {}
    for family, reason in sorted(reasons.items()):
        families.setdefault(reason, []).append(family)
    return _list((", ".join(names), f"{reason}.") for reason, names in families.items()) if reasons else ""


def _details(summary: str, inner: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>" if inner else ""


def _list(items: Iterable[tuple[str, str]]) -> str:
    inner = "".join(f"<dt>{escape(name)}</dt><dd>{_linked(said)}</dd>" for name, said in items)
    return f"<dl>{inner}</dl>" if inner else ""


def _parameters(method: dict[str, Any]) -> Iterator[str]:
    yield "<dl>"
    for name, default in method["parameters"].items():
        allowed = method["choices"].get(name, ())
        among = f" One of {', '.join(map(repr, allowed))}." if allowed else ""
        about = method["about_parameters"].get(name, "")
        yield f"<dt><code>{escape(f'{name}={default!r}')}</code></dt><dd>{_linked(about + '.' + among)}</dd>"
    yield "</dl>"


def _linked(said: str) -> str:
    """Text with links to the papers and repositories that it names, and code where it has backticks."""
    said = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(said))
    said = re.sub(
        r"arXiv (\d{4}\.\d{5})",
        r'<a href="https://arxiv.org/abs/\1" target="_blank" rel="noopener noreferrer">arXiv \1</a>',
        said,
    )
    return re.sub(
        r"\bgithub\.com/[\w.-]+/[\w.-]*\w",
        r'<a href="https://\g<0>" target="_blank" rel="noopener noreferrer">\g<0></a>',
        said,
    )
