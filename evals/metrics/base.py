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
        details: Further numbers about many answers (precision, recall ...), by name; None if there are none. A number
            that these answers leave undefined (0 / 0) is left out.
        asks: How choices are put: "question" as it is, "letters" with lettered options and the request for a letter, or
            "likelihood": the question alone, and the answer is the choice that the model finds likeliest.
        objection: Why it cannot judge answers to a sample, "has no choices" say; None if it can.
    """

    name: str
    about: str
    score: Callable[[str, Sample], float]
    details: Details | None = None
    asks: Literal["question", "letters", "likelihood"] = "question"
    objection: Callable[[Sample], str | None] = lambda sample: None

    def check(self, samples: Sequence[Sample]) -> None:
        """Make sure that answers to all samples can be judged.

        Raises:
            ValueError: Some cannot; the message names the first ones and the reason.
        """
        objections = [(sample.id, objection) for sample in samples if (objection := self.objection(sample))]
        if objections:
            first = "; ".join(f"question {name!r} {objection}" for name, objection in objections[:3])
            more = f"; and {len(objections) - 3} more" if len(objections) > 3 else ""
            raise ValueError(f"metric {self.name!r} does not suit {len(objections)} question(s): {first}{more}.")
