"""All metrics: found by name, described, and fair to right answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evals.metrics.samples import sample
from vtprune.evals.metrics import METRICS, get_metric

CHOICES = ("red circle", "A blue square", "12", "-12")


@pytest.mark.parametrize(("wrong", "near"), [("exact-match", "exact_match"), ("yesno", "yes_no"), ("leter", "letter")])
def test_unknown_name(wrong, near):
    with pytest.raises(ValueError, match=rf"unknown metric '{wrong}'\. Did you mean '{near}'"):
        get_metric(wrong)


@pytest.mark.parametrize("name", METRICS)
def test_described(name):
    assert get_metric(name).name == name
    assert get_metric(name).about


@pytest.mark.parametrize("name", METRICS)
@given(answer=st.text("ABYyesno12 .,'’()\n%-ä", max_size=40), right=st.sampled_from(CHOICES))
def test_any_answer_scores_between_0_and_1(name, answer, right):
    assert 0 <= get_metric(name).score(answer, sample(right, choices=CHOICES)) <= 1


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("right", ["Yes", "no"])
def test_the_right_answer_scores_1(name, right):
    assert get_metric(name).score(right, sample(right, choices=("no", "Yes"))) == 1


@pytest.mark.parametrize("name", METRICS)
def test_nothing_is_no_answer(name):
    assert get_metric(name).score("", sample("yes", choices=("no", "yes"))) == 0


def test_objections_name_the_first_questions():
    samples = [sample("x", choices="xy"), *(sample("x", name=str(i)) for i in range(2, 7))]
    with pytest.raises(
        ValueError, match=r"'letter' does not suit 5 question\(s\): question '2' has no choices; .* 2 more"
    ):
        get_metric("letter").check(samples)
    get_metric("exact_match").check(samples)
