"""Yes or no, and what POPE reports about many such answers."""

from __future__ import annotations

import pytest

from tests.evals.metrics.samples import sample
from vtprune.evals.metrics import get_metric
from vtprune.evals.metrics.yes_no import said


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("yes", "yes"),
        ("Yes.", "yes"),
        ("**Yes**", "yes"),
        ("Yes, there is no doubt", "yes"),
        ("Yes. No dog is there.", "yes"),
        ("No", "no"),
        ("no, but a cat", "no"),
        ("\n\nNo", "no"),
        ("There is no dog", "no"),
        ("There is not a dog in the picture", "no"),
        ("There isn't one", "no"),
        ("It isn’t", "no"),
        ("I would say yes", "yes"),
        ("Is it yes or no", None),
        ("There is a dog", None),
        ("Nothing", None),
        ("Yesterday", None),
        ("notable", None),
        ("", None),
        ("...", None),
    ],
)
def test_said(answer, word):
    assert said(answer) == word


def test_score():
    metric = get_metric("yes_no")
    assert [metric.score(answer, sample("Yes")) for answer in ("yes", "no", "a dog")] == [1, 0, 0]
    with pytest.raises(ValueError, match=r"'red', not yes or no"):
        metric.check([sample("yes"), sample("red")])


def test_details_by_hand():
    right = ["yes", "yes", "yes", "no", "no", "no", "no", "yes"]
    given = ["yes", "Yes.", "no", "yes", "no", "no", "a dog", "a dog"]
    found = get_metric("yes_no").details([sample(word) for word in right], given)
    # 2 of 3 yeses are right; 2 of 4 positives are found.
    assert found == {"precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7, "yes_ratio": 3 / 8, "unparsed": 2 / 8}


def test_undefined_details_are_left_out():
    details = get_metric("yes_no").details
    assert details([sample("no")], ["no"]) == {"yes_ratio": 0, "unparsed": 0}
    assert details([], []) == {}
