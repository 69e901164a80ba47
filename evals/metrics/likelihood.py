"""Multiple choice by likelihood: the option that the model finds likeliest is its answer.

Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv 2005.14165, section 2.4. Nothing has to be read out of
a free answer, so that no answer is lost, and the options are not shown to the model.
"""

from __future__ import annotations

from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics.base import Metric


def _score(answer: str, sample: Sample) -> float:
    return float(answer in sample.answers)


def no_choices(sample: Sample) -> str | None:
    """The objection to a sample that offers nothing to choose from."""
    return None if sample.choices else "has no choices"


LIKELIHOOD = Metric(
    name="likelihood",
    about="multiple choice: the option that the model finds likeliest is a right one (arXiv 2005.14165)",
    score=_score,
    asks="likelihood",
    objection=no_choices,
)
