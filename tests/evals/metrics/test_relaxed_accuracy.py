"""Relaxed accuracy: 5 % for numbers, nothing for words."""

from __future__ import annotations

import pytest

from tests.evals.metrics.samples import sample
from vtprune.evals.metrics import get_metric
from vtprune.evals.metrics.relaxed_accuracy import number


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("100", "100", 1),
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("94.9", "100", 0),
        ("-100", "100", 0),
        ("-99", "-100", 1),
        ("14.0", "14", 1),
        ("14.", "14", 1),
        ("12%", "12%", 1),
        ("12.3 %", "12%", 1),
        ("0.12", "12%", 1),
        ("12", "12%", 0),
        ("1,234", "1234", 1),
        ("1,234,567.8", "1234567.8", 1),
        ("1,23", "123", 0),
        ("1e3", "1000", 1),
        ("0", "0", 1),
        ("0.0", "0", 1),
        ("0.001", "0", 0),
        ("1990", "2010", 1),
        ("Yes", "yes", 1),
        ("yes", "no", 0),
        ("100 dogs", "100", 0),
        ("nan", "nan", 1),
        ("inf", "100", 0),
        ("1e999", "1e999", 1),
        ("1e999", "5", 0),
        ("", "0", 0),
        (".", "0", 0),
        ("-", "0", 0),
        ("%", "0", 0),
    ],
)
def test_table(answer, right, score):
    assert get_metric("relaxed_accuracy").score(answer, sample("other", right)) == score


@pytest.mark.parametrize("text", ["", "%", ".", "-", "+", "e5", "nan", "inf", "1_000", "0x1", "1 2", "٣x"])
def test_no_numbers(text):
    assert number(text) is None
