"""MME: yes or no, with two questions about each picture.

Fu et al. 2023, "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models", arXiv 2306.13394.

Answers are read as in `yes_no`. A subtask (`Sample.kind`) scores accuracy + accuracy+, each out of 100: the share of
its questions that are answered rightly, and the share of its pictures (`Sample.about`) of which all questions are.
MME's score is the sum over subtasks, at most 2000 for perception and 800 for cognition.

Differs from the official `calculation.py`: there the first four characters of an answer decide, so that "None" and
"Not" mean no, and "There is no" means nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics import yes_no
from vtprune.evals.metrics.base import Metric

_PARTS = {
    "mme_perception": {
        *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "ocr"),
    },
    "mme_cognition": {"commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"},
}


def _details(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    """What POPE reports, and MME's score: "mme_score", and where there are such subtasks, their part of it."""
    if not samples:
        return {}
    subtasks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample, answer in zip(samples, answers, strict=True):
        subtasks[sample.kind][sample.about].append(yes_no.is_right(answer, sample))
    scores = {kind.lower(): _subtask_score(list(pictures.values())) for kind, pictures in subtasks.items()}
    parts = {part: [scores[kind] for kind in kinds & scores.keys()] for part, kinds in _PARTS.items()}
    sums = {part: sum(found) for part, found in parts.items() if found}
    return {**yes_no.details(samples, answers), "mme_score": sum(scores.values()), **sums}


def _subtask_score(pictures: Sequence[Sequence[float]]) -> float:
    accuracy = sum(map(sum, pictures)) / sum(map(len, pictures))
    accuracy_plus = sum(map(all, pictures)) / len(pictures)
    return 100 * (accuracy + accuracy_plus)


MME = Metric(
    name="mme",
    about="yes or no, with MME's score: accuracy and accuracy+ of each subtask, summed up (arXiv 2306.13394)",
    score=yes_no.is_right,
    details=_details,
    objection=yes_no.objection,
)
