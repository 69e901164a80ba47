"""POPE.

Layout: the data set card of a copy of the repository; lmms-eval 0.7.3, task `pope`.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, Pictures
from vtprune.evals.data.benchmarks.fields import briefly

POPE = Benchmark(
    name="pope",
    title="POPE, COCO",
    about="whether an object is in a photograph; absent ones chosen at random, as popular, or adversarially",
    paper="2305.10355",
    repository="lmms-lab-encoder/POPE",
    formerly="lmms-lab/POPE",
    questions=9000,
    metric="yes_no",
    parts=(Part("data/test-*.parquet"),),
    columns=("question_id", "question", "answer", "image_source", "category"),
    id=lambda row: f"{row['category']}-{row['question_id']}",
    question=briefly("question"),
    answers="answer",
    kind="category",
    by="category",
    group="image_source",
    media=Pictures(),
)
