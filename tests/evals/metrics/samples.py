"""Questions for tests of metrics, about nothing."""

from __future__ import annotations

from vtprune.evals.data.sample import Medium, Sample


def _unread():
    raise AssertionError("a metric looks at no picture")


def sample(*answers, choices=(), kind="", about="picture.png", name="1"):
    """A question with these right answers."""
    media = (Medium(name=about, kind="image", load=_unread),)
    return Sample(id=name, question="What?", media=media, answers=answers, choices=tuple(choices), kind=kind)
