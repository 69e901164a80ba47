"""VQAv2.

Layout: the repository's data set card; lmms-eval 0.7.3, task `vqav2_val`. Answers of the test splits are not public.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, Pictures
from vtprune.evals.data.benchmarks.fields import briefly

VQAV2 = Benchmark(
    name="vqav2",
    title="VQAv2, validation",
    about="open questions about photographs, each answered by ten people",
    paper="1612.00837",
    repository="lmms-lab-encoder/VQAv2",
    formerly="lmms-lab/VQAv2",
    questions=214354,
    metric="vqa_accuracy",
    parts=(Part("data/validation-*.parquet", split="validation"),),
    columns=("question_id", "image_id", "question", "answers", "answer_type"),
    id="question_id",
    question=briefly("question"),
    answers=lambda row: [given["answer"] for given in row["answers"]],
    kind="answer_type",
    by="type of answer",
    group="image_id",
    media=Pictures(),
)
