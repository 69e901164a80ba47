"""F1 of the words that an answer shares with a right one.

Rajpurkar et al. 2016, "SQuAD", arXiv 1606.05250.

Words are compared in lower case, without ASCII punctuation and without "a", "an" and "the"; a word that comes twice
counts twice. F1 = 2 * shared / (words of the answer + words of the right one); the best over all right answers counts.
Where one of the two has no words left, the score is 1 if neither has, as in the official evaluation of SQuAD 2.0
(arXiv 1806.03822).
"""

from __future__ import annotations

import re
import string
from collections import Counter

from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics.base import Metric

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:an?|the)\b")


def _words(text: str) -> Counter[str]:
    return Counter(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _f1(answer: str, right: str) -> float:
    given, wanted = _words(answer), _words(right)
    if not given or not wanted:
        return float(given == wanted and answer.strip() != "")
    return 2 * (given & wanted).total() / (given.total() + wanted.total())


def _score(answer: str, sample: Sample) -> float:
    return max(_f1(answer, right) for right in sample.answers)


TOKEN_F1 = Metric(
    name="token_f1",
    about="F1 of the words shared with a right answer (SQuAD: arXiv 1606.05250)",
    score=_score,
)
