"""How answers are judged, by name."""

from __future__ import annotations

import difflib

from vtprune.evals.metrics.anls import ANLS
from vtprune.evals.metrics.base import Metric
from vtprune.evals.metrics.exact_match import EXACT_MATCH
from vtprune.evals.metrics.letter import LETTER
from vtprune.evals.metrics.likelihood import LIKELIHOOD
from vtprune.evals.metrics.mme import MME
from vtprune.evals.metrics.relaxed_accuracy import RELAXED_ACCURACY
from vtprune.evals.metrics.token_f1 import TOKEN_F1
from vtprune.evals.metrics.vqa_accuracy import VQA_ACCURACY
from vtprune.evals.metrics.yes_no import YES_NO

_ALL = (EXACT_MATCH, RELAXED_ACCURACY, VQA_ACCURACY, ANLS, TOKEN_F1, LETTER, LIKELIHOOD, YES_NO, MME)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""All metrics by name."""


def get_metric(name: str) -> Metric:
    """The metric of a name.

    Raises:
        ValueError: Unknown name; the message suggests the nearest ones.
    """
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(str(name), METRICS, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"unknown metric {name!r}.{hint} Known metrics: {', '.join(METRICS)}.")
