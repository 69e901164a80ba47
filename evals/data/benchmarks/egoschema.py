"""EgoSchema: the 500 questions whose answers are public.

Layout: the repository's file list; lmms-eval 0.7.3, task `egoschema_subset`. The zip files hold
`videos/<video_idx>.mp4`.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, VideoFiles
from vtprune.evals.data.benchmarks.fields import by_number, unlettered

EGOSCHEMA = Benchmark(
    name="egoschema",
    title="EgoSchema, subset with answers",
    about="what people do over three minutes, seen with their eyes, multiple choice",
    paper="2308.09126",
    repository="lmms-eval/egoschema",
    formerly="lmms-lab/egoschema",
    questions=500,
    metric="letter",
    parts=(Part("Subset/test-*.parquet", "Subset"),),
    columns=("question", "video_idx", "option", "answer"),
    id="video_idx",
    question="question",
    answers=lambda row: by_number(unlettered(row["option"]), row["answer"]),
    choices=lambda row: unlettered(row["option"]),
    group="video_idx",
    media=VideoFiles(lambda row: f"{row['video_idx']}.mp4"),
)
