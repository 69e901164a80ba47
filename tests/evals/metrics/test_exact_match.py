"""Exact match."""

from __future__ import annotations

import pytest

from tests.evals.metrics.samples import sample
from vtprune.evals.metrics import get_metric


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("red", "red", 1),
        (" Red.\n", "red", 1),
        ("red", "Red.", 1),
        ("dark\n red", "dark red", 1),
        ("STRASSE", "Straße", 1),
        ("cafe\u0301", "caf\u00e9", 1),
        ("3.5", "3.5", 1),
        ("red..", "red", 0),
        ("the red", "red", 0),
        ("red, yes", "red", 0),
        ("1,000", "1000", 0),
        ("", ".", 0),
        (".", ".", 1),
        ("", "red", 0),
    ],
)
def test_table(answer, right, score):
    assert get_metric("exact_match").score(answer, sample("other", right)) == score
