"""GQA.

Layout: the repository's data set card; lmms-eval 0.7.3, task `gqa`.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, PictureTable
from vtprune.evals.data.benchmarks.fields import briefly

_SEMANTIC = {"rel": "relation", "attr": "attribute", "obj": "object", "cat": "category"}

GQA = Benchmark(
    name="gqa",
    title="GQA, testdev balanced",
    about="objects, their attributes and relations in photographs",
    paper="1902.09506",
    repository="lmms-lab-encoder/GQA",
    formerly="lmms-lab/GQA",
    questions=12578,
    metric="exact_match",
    parts=(Part("testdev_balanced_instructions/testdev-*.parquet", "testdev_balanced_instructions", "testdev"),),
    columns=("id", "imageId", "question", "answer", "types"),
    id="id",
    question=briefly("question"),
    answers="answer",
    kind=lambda row: _SEMANTIC.get(row["types"]["semantic"], row["types"]["semantic"]),
    by="semantic type",
    group="imageId",
    media=PictureTable(
        Part("testdev_balanced_images/testdev-*.parquet", "testdev_balanced_images", "testdev"), by="imageId"
    ),
)
