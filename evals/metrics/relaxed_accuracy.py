"""Relaxed accuracy: numbers may be 5 % off, all else must be the same.

Masry et al. 2022, "ChartQA", arXiv 2203.10244, after Methani et al. 2020, "PlotQA", arXiv 1909.00997.

Two numbers: |answer - right| / |right| is at most 0.05; if the right one is 0, the answer must be 0. "12%" is 0.12, and
"1,234" is 1234. Otherwise as `exact_match`.

Differs from the code in common use (that of Pix2Struct, also in lmms-eval): there, numbers with thousands separators
are words, a right answer of 0 is compared as a word, so that "0.0" is wrong, and space and full stops count. As there,
years are numbers like any other, so that 1990 passes for 2010.
"""

from __future__ import annotations

import re

from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics.base import Metric
from vtprune.evals.metrics.exact_match import plain

_TOLERANCE = 0.05
_NUMBER = re.compile(r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:e[+-]?\d{1,3})?)\s*(%?)")


def number(text: str) -> float | None:
    """The number that a text is; None if it is none."""
    match = _NUMBER.fullmatch(plain(text))
    try:
        value = float(match[1].replace(",", "")) if match else None
    except ValueError:  # a sign, a point or an exponent alone
        return None
    return value / 100 if match and value is not None and match[2] else value


def _is_right(answer: str, right: str) -> bool:
    given, wanted = number(answer), number(right)
    if given is None or wanted is None or plain(answer) == plain(right):
        return plain(answer) == plain(right)
    return abs(given - wanted) / abs(wanted) <= _TOLERANCE if wanted else given == 0


def _score(answer: str, sample: Sample) -> float:
    return float(any(_is_right(answer, right) for right in sample.answers))


RELAXED_ACCURACY = Metric(
    name="relaxed_accuracy",
    about="numbers within 5 % of a right answer, all else the same (ChartQA: arXiv 2203.10244)",
    score=_score,
)
