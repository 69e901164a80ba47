"""Exact match: the answer is one of the right ones, word for word.

Case, surrounding space, runs of space and one final full stop do not count, nor does the way in which Unicode writes an
accent (NFC). Nothing else is forgiven: no article, no comma, no further word.

GQA (Hudson and Manning 2019, arXiv 1902.09506) is scored by this rule. Its official `eval.py` compares without any of
the above, its answers being lower-case words without punctuation.
"""

from __future__ import annotations

import unicodedata

from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics.base import Metric


def plain(text: str) -> str:
    """What two texts have in common that differ in case, space and a final full stop only."""
    text = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return text[:-1].rstrip() or text if text.endswith(".") else text


def _score(answer: str, sample: Sample) -> float:
    return float(plain(answer) in map(plain, sample.answers))


EXACT_MATCH = Metric(
    name="exact_match",
    about="the answer is a right one, but for case, space and a final full stop (GQA: arXiv 1902.09506)",
    score=_score,
)
