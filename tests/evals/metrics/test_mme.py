"""MME's score."""

from __future__ import annotations

import pytest

from tests.evals.metrics.samples import sample
from vtprune.evals.metrics import get_metric


def questions(kind, pictures):
    """Two questions about each picture, to be answered with yes and no."""
    return [sample(right, kind=kind, about=f"{kind}-{i}") for i in range(pictures) for right in ("Yes", "No")]


def test_by_hand():
    asked = [*questions("count", 3), *questions("OCR", 1), *questions("code_reasoning", 2)]
    count = ["yes", "no", "yes", "yes", "no", "yes"]  # 3 of 6 questions, 1 of 3 pictures
    ocr = ["yes", "no"]  # all
    code = ["no", "maybe", "yes", "yes"]  # 1 of 4, none of 2
    details = get_metric("mme").details(asked, [*count, *ocr, *code])
    assert details["mme_perception"] == pytest.approx(100 * (3 / 6 + 1 / 3) + 200)
    assert details["mme_cognition"] == pytest.approx(25)
    assert details["mme_score"] == pytest.approx(100 * (3 / 6 + 1 / 3) + 200 + 25)
    assert details["unparsed"] == pytest.approx(1 / 12)


def test_own_subtasks():
    details = get_metric("mme").details(questions("mine", 2), ["yes", "no", "no", "yes"])
    assert details["mme_score"] == 100
    assert not {"mme_perception", "mme_cognition"} & details.keys()
    assert get_metric("mme").details([], []) == {}
