"""ANLS: average normalised Levenshtein similarity, which forgives errors of reading.

Biten et al. 2019, "Scene Text Visual Question Answering", arXiv 1905.13648; Mathew et al. 2021, "DocVQA",
arXiv 2007.00398.

The similarity of an answer to a right one is 1 - edits / length of the longer one, in characters, after both are put
into lower case and runs of space are shortened. The best over all right answers is the score if it is at least 0.5,
else 0.

In the paper a similarity of exactly 0.5 scores 0; the code in common use (that of Qwen-VL, also in lmms-eval) lets it
pass, and so do we. That code divides by the length before runs of space are shortened.
"""

from __future__ import annotations

from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics.base import Metric

_THRESHOLD = 0.5


def edits(one: str, other: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements of a character that turn one text into the other."""
    row = list(range(len(other) + 1))
    for count, character in enumerate(one, 1):
        above, row[0] = row[0], count
        for place, wanted in enumerate(other, 1):
            above, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, above + (character != wanted))
    return row[-1]


def _similarity(answer: str, right: str) -> float:
    answer, right = (" ".join(text.lower().split()) for text in (answer, right))
    longer, shorter = max(len(answer), len(right)), min(len(answer), len(right))
    if shorter < _THRESHOLD * longer:  # at least longer - shorter edits: not worth counting
        return 0.0
    return 1 - edits(answer, right) / longer if longer else 1.0


def _score(answer: str, sample: Sample) -> float:
    best = max(_similarity(answer, right) for right in sample.answers)
    return best if best >= _THRESHOLD else 0.0


ANLS = Metric(
    name="anls",
    about="similarity to a right answer by edits of characters, 0 below 0.5 (DocVQA: arXiv 2007.00398)",
    score=_score,
)
