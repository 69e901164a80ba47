"""DocVQA. Answers of its test split are not public.

Layout: the repository's data set card; lmms-eval 0.7.3, task `docvqa_val`.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, Pictures
from vtprune.evals.data.benchmarks.fields import briefly

DOCVQA = Benchmark(
    name="docvqa",
    title="DocVQA, validation",
    about="scanned pages: forms, tables, letters, figures",
    paper="2007.00398",
    repository="lmms-lab-encoder/DocVQA",
    formerly="lmms-lab/DocVQA",
    questions=5349,
    metric="anls",
    parts=(Part("DocVQA/validation-*.parquet", "DocVQA", "validation"),),
    columns=("questionId", "question", "question_types", "ucsf_document_id", "ucsf_document_page_no", "answers"),
    id="questionId",
    question=briefly("question"),
    answers="answers",
    kind=lambda row: " + ".join(sorted(row["question_types"] or [])),
    by="types of question",
    group=lambda row: f"{row['ucsf_document_id']}-{row['ucsf_document_page_no']}",
    media=Pictures(),
)
