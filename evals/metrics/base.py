"""What a metric is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from vtprune.evals.data.sample import Sample

Details = Callable[[Sequence[Sample], Sequence[str]], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Metric:
    """How an answer is judged.

    Args:
        name: As `--metric` takes it.
        about: What it is, in one line, with its source.
        score: Of an answer to a sample that has `answers`, 0 .. 1; pure.
        details: Further numbers about many answers (precision, recall ...), by name; None if there are none.
        asks: How choices are put: "question" as it is, "letters" with lettered options and the request for a letter, or
            "likelihood": the question alone, and the answer is the choice that the model finds likeliest.
    """

    name: str
    about: str
    score: Callable[[str, Sample], float]
    details: Details | None = None
    asks: Literal["question", "letters", "likelihood"] = "question"
