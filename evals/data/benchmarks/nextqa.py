"""NExT-QA, multiple choice.

Layout: the repository's file list; lmms-eval 0.7.3, task `nextqa_mc_test`. The zip file holds `NExTVideo/<video>.mp4`.
Kinds are the paper's three, by the first letter of a question's type.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, Row, VideoFiles
from vtprune.evals.data.benchmarks.fields import by_number

_KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}


def _choices(row: Row) -> list[str]:
    return [row[f"a{number}"].strip() for number in range(5)]


NEXTQA = Benchmark(
    name="nextqa",
    title="NExT-QA, multiple choice, test",
    about="why, how and when things happen in everyday videos, multiple choice",
    paper="2105.08276",
    repository="lmms-eval/NExTQA",
    formerly="lmms-lab/NExTQA",
    questions=8564,
    metric="letter",
    parts=(Part("MC/test-*.parquet", "MC"),),
    columns=("video", "question", "answer", "type", "a0", "a1", "a2", "a3", "a4"),
    id="video",
    question=lambda row: row["question"].strip(),
    answers=lambda row: by_number(_choices(row), row["answer"]),
    choices=_choices,
    kind=lambda row: _KINDS.get(row["type"][:1], row["type"]),
    by="causal, temporal, descriptive",
    group="video",
    media=VideoFiles(lambda row: f"NExTVideo/{row['video']}.mp4"),
)
