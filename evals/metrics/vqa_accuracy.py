"""VQA accuracy: an answer is right if three of the ten people who were asked gave it.

Antol et al. 2015, "VQA: Visual Question Answering", arXiv 1505.00468; Goyal et al. 2017 (VQA v2), arXiv 1612.00837.
Also TextVQA, arXiv 1904.08920.

Answers are compared as `vqa_words.same_words` has them. Each annotator is left out once; among the others,
min(number who gave this answer / 3, 1) counts, and the score is the mean. Of k < 4 annotators k - 1 must agree instead
of three, and a single one is simply right, so that an answer which all gave scores 1.

Differs from the official `vqaEval.py`: there the annotators' answers are processed only where they are not all the same
(those of VQA v2 come processed), and fewer than four annotators can never add up to 1. An answer of which the
processing leaves nothing ("a") is compared as `exact_match` has it.
"""

from __future__ import annotations

from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics.base import Metric
from vtprune.evals.metrics.exact_match import plain
from vtprune.evals.metrics.vqa_words import same_words

_ENOUGH = 3


def _comparable(answer: str) -> str:
    return same_words(answer) or plain(answer)


def _score(answer: str, sample: Sample) -> float:
    people = len(sample.answers)
    given = _comparable(answer)
    same = sum(_comparable(right) == given for right in sample.answers)
    if people == 1:
        return float(same)
    enough = min(_ENOUGH, people - 1)
    # Those who gave the answer leave one fewer behind when they are left out.
    return (same * min((same - 1) / enough, 1.0) + (people - same) * min(same / enough, 1.0)) / people


VQA_ACCURACY = Metric(
    name="vqa_accuracy",
    about="min(annotators who gave the answer / 3, 1), the mean with each left out (VQA v2: arXiv 1612.00837)",
    score=_score,
)
