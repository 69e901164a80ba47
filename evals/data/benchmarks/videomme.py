"""Video-MME, without subtitles.

Layout: the repository's data set card; lmms-eval 0.7.3, task `videomme`. The zip files hold `data/<videoID>.mp4`.
"""

from __future__ import annotations

from vtprune.evals.data.benchmarks.base import Benchmark, Part, VideoFiles
from vtprune.evals.data.benchmarks.fields import by_letter, unlettered

VIDEOMME = Benchmark(
    name="videomme",
    title="Video-MME, without subtitles",
    about="short, medium and long videos of six domains, multiple choice",
    paper="2405.21075",
    repository="lmms-eval/Video-MME",
    formerly="lmms-lab/Video-MME",
    questions=2700,
    metric="letter",
    parts=(Part("videomme/test-*.parquet", "videomme"),),
    columns=("question_id", "videoID", "duration", "question", "options", "answer"),
    id="question_id",
    question="question",
    answers=lambda row: by_letter(unlettered(row["options"]), row["answer"]),
    choices=lambda row: unlettered(row["options"]),
    kind="duration",
    by="duration",
    group="videoID",
    media=VideoFiles(lambda row: f"{row['videoID']}.mp4"),
)
