"""ScienceQA: the questions that come with a picture, which have a configuration of their own.

Layout: the repository's data set card; lmms-eval 0.7.3, task `scienceqa_img`, which puts the hint first alike.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, Pictures, Row
from vtprune.evals.data.benchmarks.fields import by_number


def _question(row: Row) -> str:
    return f"Context: {row['hint']}\n{row['question']}" if row["hint"] else str(row["question"])


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA, with pictures, test",
    about="school questions about diagrams and photographs, multiple choice",
    paper="2209.09513",
    repository="lmms-lab-encoder/ScienceQA",
    formerly="lmms-lab/ScienceQA",
    questions=2017,
    metric="letter",
    parts=(Part("ScienceQA-IMG/test-*.parquet", "ScienceQA-IMG"),),
    columns=("question", "choices", "answer", "hint", "subject"),
    question=_question,
    answers=lambda row: by_number(row["choices"], row["answer"]),
    choices="choices",
    kind="subject",
    by="subject",
    media=Pictures(),
)
