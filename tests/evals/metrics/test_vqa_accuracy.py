"""VQA accuracy: what counts as the same answer, and how many people must have given it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evals.metrics.samples import sample
from vtprune.evals.metrics import get_metric
from vtprune.evals.metrics.vqa_words import same_words

SCORE = get_metric("vqa_accuracy").score


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("Two", "2"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("the red a car an", "red car"),
        ("another theme", "another theme"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("twas", "'twas"),
        ("its well, were ill", "its well were ill"),
        ("Yes.", "yes"),
        ("U.S.A.", "usa"),
        ("3.14", "3.14"),
        ("5.", "5"),
        (".5", ".5"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("black, white/red", "black white red"),
        ("t-shirt", "t shirt"),
        ("t -shirt", "t shirt"),
        ("x- b-c", "x bc"),
        ("1,000", "1000"),
        ("1,000-2", "10002"),
        ("12:30", "12:30"),
        ("dog's", "dog's"),
        ("50%", "50%"),
        ("$5", "$5"),
        ("line\nend\ttab", "line end tab"),
        ("", ""),
        ("!", ""),
    ],
)
def test_same_words(answer, same):
    assert same_words(answer) == same


@pytest.mark.parametrize(("people", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_ten_annotators(people, score):
    assert SCORE("Red.", sample(*["red"] * people, *["blue"] * (10 - people))) == pytest.approx(score)


def test_fewer_annotators():
    assert SCORE("red", sample("red")) == 1
    assert SCORE("red", sample("blue")) == 0
    assert SCORE("red", sample("red", "blue")) == 0.5
    assert SCORE("red", sample("red", "red", "blue")) == pytest.approx((0.5 + 0.5 + 1) / 3)


@given(st.lists(st.sampled_from(["red", "blue", "2"]), min_size=4, max_size=12), st.sampled_from(["red", "two", "no"]))
def test_the_mean_over_subsets(answers, answer):
    subsets = itertools.combinations(answers, len(answers) - 1)
    expected = [min(subset.count(same_words(answer)) / 3, 1) for subset in subsets]
    assert SCORE(answer, sample(*answers)) == pytest.approx(sum(expected) / len(expected))


@pytest.mark.parametrize("answer", ["a", "!", "the"])
def test_answers_of_which_nothing_is_left(answer):
    assert SCORE(answer, sample(*[answer] * 10)) == 1
    assert SCORE("", sample(*[answer] * 10)) == 0
