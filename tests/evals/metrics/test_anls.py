"""ANLS, and the distance below it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evals.metrics.samples import sample
from vtprune.evals.metrics import get_metric
from vtprune.evals.metrics.anls import edits

TEXTS = st.text("ab ", max_size=6)


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("1 Main Street", "1  main street ", 1),
        ("1 main stret", "1 main street", 1 - 1 / 13),
        ("abcd", "abxy", 0.5),
        ("abcde", "abxyz", 0),
        ("abc", "abcdef", 0.5),
        ("abc", "abcdefg", 0),
        ("", "red", 0),
        ("kitten", "sitting", 1 - 3 / 7),
    ],
)
def test_table(answer, right, score):
    assert get_metric("anls").score(answer, sample(right)) == pytest.approx(score)


def test_the_best_right_answer_counts():
    assert get_metric("anls").score("red", sample("blue", "reds", "red hat")) == 0.75


@given(TEXTS, TEXTS, TEXTS)
def test_a_distance(one, two, three):
    assert (edits(one, two) == 0) == (one == two)
    assert edits(one, two) == edits(two, one) <= max(len(one), len(two))
    assert edits(one, three) <= edits(one, two) + edits(two, three)
    assert abs(len(one) - len(two)) <= edits(one, two)
