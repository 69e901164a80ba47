"""F1 of shared words."""

from __future__ import annotations

import pytest

from tests.evals.metrics.samples import sample
from vtprune.evals.metrics import get_metric


@pytest.mark.parametrize(
    ("answer", "rights", "score"),
    [
        ("The red car!", ["red car"], 1),
        ("red car", ["car"], 2 / 3),
        ("red car", ["blue", "a car that is red"], 2 * 2 / (2 + 4)),
        ("red red", ["red"], 2 / 3),
        ("dog", ["cat"], 0),
        ("another", ["other"], 0),
        ("don't", ["dont"], 1),
        ("", ["red"], 0),
        ("the", ["the"], 1),
        ("", ["the"], 0),
    ],
)
def test_table(answer, rights, score):
    assert get_metric("token_f1").score(answer, sample(*rights)) == pytest.approx(score)
