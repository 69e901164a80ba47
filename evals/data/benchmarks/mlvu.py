"""MLVU, the questions of its dev set that are multiple choice, in the form made for lmms-eval.

Layout: the repository's file list; lmms-eval 0.7.3, task `mlvu_dev`; public code that reads `candidates`. A question
goes on with the options, on further lines. That the right answer is a letter follows from how lmms-eval compares it;
the text of a candidate is understood, too.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, Row, VideoFiles
from vtprune.evals.data.benchmarks.fields import by_letter


def _answer(row: Row) -> str:
    candidates, answer = row["candidates"], str(row["answer"])
    return answer if answer in candidates else by_letter(candidates, answer)


MLVU = Benchmark(
    name="mlvu",
    title="MLVU, dev, multiple choice",
    about="seven tasks about videos of minutes to hours, multiple choice",
    paper="2406.04264",
    repository="sy1998/MLVU_dev",
    questions=2174,
    metric="letter",
    parts=(Part("mlvu/test-*.parquet"),),
    columns=("video_name", "question", "candidates", "answer", "task_type"),
    question=lambda row: row["question"].strip().splitlines()[0],
    answers=_answer,
    choices="candidates",
    kind="task_type",
    by="task",
    group="video_name",
    media=VideoFiles("video_name"),
)
