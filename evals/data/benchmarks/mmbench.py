"""MMBench: every question comes with its options in several orders, as rows whose indices differ by millions.

What is reported here is plain accuracy over all rows. The benchmark's own CircularEval counts a question as right only
if it is answered rightly in every order.

Layout: the repository's data set card; lmms-eval 0.7.3, task `mmbench_en_dev`, which puts the hint first alike. Orders:
VLMEvalKit, `MMBench_DEV_EN`.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, Pictures, Row

_ORDERS = 10**6


def _given(text: str | None) -> bool:
    return bool(text) and text != "nan"


def _choices(row: Row) -> list[str]:
    return [row[letter] for letter in "ABCD" if _given(row[letter])]


def _answer(row: Row) -> str:
    if row["answer"] not in tuple("ABCD") or not _given(row[row["answer"]]):
        raise ValueError(f"its answer {row['answer']!r} is no option")
    answer: str = row[row["answer"]]
    return answer


MMBENCH = Benchmark(
    name="mmbench",
    title="MMBench, English, dev",
    about="twenty abilities, multiple choice, options in several orders",
    paper="2307.06281",
    repository="lmms-lab-encoder/MMBench",
    formerly="lmms-lab/MMBench",
    questions=4329,
    metric="letter",
    parts=(Part("en/dev-*.parquet", "en", "dev"),),
    columns=("index", "question", "hint", "answer", "A", "B", "C", "D", "category"),
    id="index",
    question=lambda row: f"{row['hint']}\n{row['question']}" if _given(row["hint"]) else row["question"],
    answers=_answer,
    choices=_choices,
    kind="category",
    by="ability",
    group=lambda row: int(row["index"]) % _ORDERS,
    media=Pictures(),
)
