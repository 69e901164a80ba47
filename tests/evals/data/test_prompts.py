"""What a model is asked."""

from __future__ import annotations

import pytest

from tests.evals.metrics.samples import sample
from vtprune.evals.data.choices import right_letters
from vtprune.evals.data.prompts import asked
from vtprune.evals.metrics import METRICS, get_metric


def test_letters_show_the_options():
    assert asked(sample("cat", choices=("dog", "cat")), get_metric("letter")) == (
        "What?\nA. dog\nB. cat\nAnswer with the option's letter from the given choices directly."
    )


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.asks != "letters"])
def test_other_metrics_ask_the_question_alone(name):
    assert asked(sample("cat", choices=("dog", "cat")), get_metric(name)) == "What?"


def test_letters_need_choices():
    with pytest.raises(ValueError, match=r"question '1' has no choices"):
        asked(sample("cat"), get_metric("letter"))


def test_right_letters():
    assert right_letters(sample("cat", "fish", choices=("fish", "dog", "cat"))) == ("A", "C")
    assert right_letters(sample(choices=("fish", "dog"))) == ()
