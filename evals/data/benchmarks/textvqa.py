"""TextVQA, without the OCR tokens that some evaluations put into the prompt.

Layout: the data set card of a copy of the repository; lmms-eval 0.7.3, task `textvqa_val`, which capitalises alike.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, Pictures
from vtprune.evals.data.benchmarks.fields import brief

TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA, validation",
    about="text in photographs, each question answered by ten people",
    paper="1904.08920",
    repository="lmms-lab-encoder/textvqa",
    formerly="lmms-lab/textvqa",
    questions=5000,
    metric="vqa_accuracy",
    parts=(Part("data/validation-*.parquet", split="validation"),),
    columns=("question_id", "image_id", "question", "answers"),
    id="question_id",
    question=lambda row: brief(row["question"].strip().capitalize()),
    answers="answers",
    group="image_id",
    media=Pictures(),
)
