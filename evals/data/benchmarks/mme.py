"""MME: two questions about every picture, one to be answered yes, the other no.

Layout: the repository's data set card; lmms-eval 0.7.3, task `mme`, which exchanges the request alike.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, Pictures
from vtprune.evals.data.benchmarks.fields import brief

_REQUEST = "Please answer yes or no."


MME = Benchmark(
    name="mme",
    title="MME",
    about="perception and cognition in fourteen subtasks, two yes-or-no questions about every picture",
    paper="2306.13394",
    repository="lmms-lab-encoder/MME",
    formerly="lmms-lab/MME",
    questions=2374,
    metric="mme",
    parts=(Part("data/test-*.parquet"),),
    columns=("question_id", "question", "answer", "category"),
    id="question_id",
    question=lambda row: brief(row["question"].replace(_REQUEST, "")),
    answers="answer",
    kind="category",
    by="subtask",
    group="question_id",
    media=Pictures(),
)
