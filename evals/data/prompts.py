"""How a question is put to a model."""

from __future__ import annotations

from vtprune.evals.data.choices import lettered
from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics.base import Metric

REQUEST = "Answer with the option's letter from the given choices directly."
"""What follows the options; the words that LLaVA-1.5 was trained with (arXiv 2310.03744)."""


def asked(sample: Sample, metric: Metric) -> str:
    """The text of the prompt: the question, and for a metric that asks for letters, the options and `REQUEST`.

    Args:
        sample: What is asked.
        metric: How the answer will be judged.

    Raises:
        ValueError: A letter is to be asked for, but there are no choices, or more than 26.
    """
    if metric.asks != "letters":
        return sample.question
    options = [f"{letter}. {choice}" for letter, choice in lettered(sample).items()]
    return "\n".join([sample.question, *options, REQUEST])
