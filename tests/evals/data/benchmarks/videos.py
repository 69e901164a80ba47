"""Samples of the benchmarks about videos."""

from __future__ import annotations

from datasets import Features, Value

from tests.evals.data.benchmarks.published import (
    LONG,
    TEXT,
    TEXTS,
    Published,
    asked,
)
from vtprune.evals.data.benchmarks import BENCHMARKS

VIDEOMME = Published(
    {
        "videomme/test-00000-of-00001.parquet": (
            Features(
                {
                    "video_id": TEXT,
                    "duration": TEXT,
                    "domain": TEXT,
                    "sub_category": TEXT,
                    "url": TEXT,
                    "videoID": TEXT,
                    "question_id": TEXT,
                    "task_type": TEXT,
                    "question": TEXT,
                    "options": TEXTS,
                    "answer": TEXT,
                }
            ),
            [
                {"video_id": "001", "duration": "short", "domain": "Knowledge", "videoID": "fFjv93ACGo8"}
                | {"question_id": f"001-{number}", "question": question, "options": options, "answer": answer}
                for number, question, options, answer in (
                    (1, "What is used?", ["A. Apples.", "B. Candles.", "C. Berries.", "D. None."], "C"),
                    (2, "How many?", ["A. One.", "B.Two.", "C. 3.", "D. 4."], "B"),
                )
            ],
        )
    },
    [
        asked("001-1", "What is used?", "Berries.", choices=("Apples.", "Candles.", "Berries.", "None."))
        | {"kind": "short", "group": "fFjv93ACGo8"},
        asked("001-2", "How many?", "Two.", choices=("One.", "Two.", "3.", "4."))
        | {"kind": "short", "group": "fFjv93ACGo8"},
    ],
    "letter",
    videos=("data/fFjv93ACGo8.mp4",) * 2,
)

# Two of its tasks have a video of the same name, as clevrer's and perception's do; the others are empty here.
MVBENCH = Published(
    {part.files: (None, []) for part in BENCHMARKS["mvbench"].parts}
    | {
        "json/action_count.json": (
            None,
            [{"video": "video_1.mp4", "question": "How often?", "candidates": ["3", "4"], "answer": "4"}],
        ),
        "json/moving_count.json": (
            None,
            [{"video": "video_1.mp4", "question": "How many?", "candidates": ["1", "2", "0"], "answer": "0"}],
        ),
    },
    [
        asked("action_count-0", "How often?", "4", kind="action_count", choices=("3", "4"))
        | {"group": "perception/videos/video_1.mp4"},
        asked("moving_count-0", "How many?", "0", kind="moving_count", choices=("1", "2", "0"))
        | {"group": "clevrer/video_validation/video_1.mp4"},
    ],
    "letter",
    videos=("perception/videos/video_1.mp4", "clevrer/video_validation/video_1.mp4"),
)

MLVU = Published(
    {
        "mlvu/test-00000-of-00001.parquet": (
            Features(
                {
                    "video_name": TEXT,
                    "duration": Value("float64"),
                    "question": TEXT,
                    "candidates": TEXTS,
                    "answer": TEXT,
                    "task_type": TEXT,
                }
            ),
            [
                {"video_name": "movie_6.mp4", "question": "What colour?\n(A) Red\n(B) Blue", "answer": "B"}
                | {"candidates": ["Red", "Blue"], "task_type": "plotQA"},
                {"video_name": "ego_1.mp4", "question": "How often?", "answer": "2"}
                | {"candidates": ["2", "3"], "task_type": "count"},
            ],
        )
    },
    [
        asked("0", "What colour?", "Blue", kind="plotQA", group="movie_6.mp4", choices=("Red", "Blue")),
        asked("1", "How often?", "2", kind="count", group="ego_1.mp4", choices=("2", "3")),
    ],
    "letter",
    videos=("movie_6.mp4", "ego_1.mp4"),
)

NEXTQA = Published(
    {
        "MC/test-00000-of-00001.parquet": (
            Features(
                {
                    "video": LONG,
                    "frame_count": LONG,
                    "width": LONG,
                    "height": LONG,
                    "question": TEXT,
                    "answer": LONG,
                    "qid": LONG,
                    "type": TEXT,
                    **{f"a{number}": TEXT for number in range(5)},
                }
            ),
            [
                {"video": 4010069381, "question": "why did he clap ", "answer": answer, "qid": answer, "type": kind}
                | {"a0": "happy", "a1": "to greet ", "a2": "bored", "a3": "music", "a4": "cold"}
                for answer, kind in ((1, "CW"), (4, "TN"))
            ],
        )
    },
    [
        asked(id, "why did he clap", answer, kind=kind, choices=("happy", "to greet", "bored", "music", "cold"))
        | {"group": "4010069381"}
        for id, answer, kind in (("4010069381", "to greet", "causal"), ("4010069381#2", "cold", "temporal"))
    ],
    "letter",
    videos=("NExTVideo/4010069381.mp4",) * 2,
)

EGOSCHEMA = Published(
    {
        "Subset/test-00000-of-00001.parquet": (
            Features({"question_idx": TEXT, "question": TEXT, "video_idx": TEXT, "option": TEXTS, "answer": TEXT}),
            [
                {"question_idx": "0", "question": "What does C do?", "video_idx": "001934bb", "answer": "2"}
                | {"option": ["A. C cooks.", "B. C reads.", "C. C cleans.", "D. C paints.", "E. C sews."]}
            ],
        )
    },
    [
        asked("001934bb", "What does C do?", "C cleans.", group="001934bb")
        | {"choices": ("C cooks.", "C reads.", "C cleans.", "C paints.", "C sews.")}
    ],
    "letter",
    videos=("videos/001934bb.mp4",),
)
