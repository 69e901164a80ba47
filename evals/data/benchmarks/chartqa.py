"""ChartQA.

Layout: the repository's data set card; lmms-eval 0.7.3, task `chartqa`, whose request this is.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, Pictures
from vtprune.evals.data.benchmarks.fields import briefly

CHARTQA = Benchmark(
    name="chartqa",
    title="ChartQA, test",
    about="figures in charts; questions of people and generated ones",
    paper="2203.10244",
    repository="lmms-lab-encoder/ChartQA",
    formerly="lmms-lab/ChartQA",
    questions=2500,
    metric="relaxed_accuracy",
    parts=(Part("data/test-*.parquet"),),
    columns=("type", "question", "answer"),
    question=briefly("question", "Answer the question with a single word."),
    answers="answer",
    kind=lambda row: row["type"].removesuffix("_test"),
    by="human or augmented",
    media=Pictures(),
)
