"""Small samples of public benchmarks in the layouts in which they are published, and what is to be read from them.

The columns are those of the repositories' data set cards, also where the readers do not need them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as Pillow

from vtprune.evals.clips import write_clip
from vtprune.evals.data.benchmarks import BENCHMARKS

SHORT = "\nAnswer the question using a single word or phrase."

TEXT, LONG, INT32, INT8 = Value("string"), Value("int64"), Value("int32"), Value("int8")
TEXTS = Sequence(TEXT)
IMAGE = Image()


def picture(number: int) -> Pillow.Image:
    """A picture that tells its number by its colour."""
    return Pillow.new("RGB", (8, 6), colour(number))


def colour(number: int) -> tuple[int, int, int]:
    return 20 + 40 * number, 100, 200 - 30 * number


@dataclasses.dataclass(frozen=True)
class Published:
    """A sample.

    Args:
        tables: Features and rows by file.
        expected: What is read, without media.
        pictures: Number of the picture of each question.
        videos: File of the video of each question.
        metric: The benchmark's.
    """

    tables: dict[str, tuple[Features | None, list[dict[str, Any]]]]
    expected: list[dict[str, Any]]
    metric: str
    pictures: tuple[int, ...] = ()
    videos: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write it all."""
        for file, (features, rows) in self.tables.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if features is None:
                path.write_text(json.dumps(rows))
            else:
                full = [{column: row.get(column) for column in features} for row in rows]
                Dataset.from_list(full, features).to_parquet(path)
        for number, file in enumerate(dict.fromkeys(self.videos)):
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(np.full((4, 32, 32, 3), 60 * number, np.uint8), path)
        return folder


def asked(id: str, question: str, *answers: str, kind: str = "", group: str = "", choices: tuple = ()) -> dict:
    return dict(id=id, question=question, answers=answers, kind=kind, group=group, choices=tuple(choices))


PART = Features({"objectId": TEXT, "value": TEXT})
GQA = Published(
    {
        "testdev_balanced_instructions/testdev-00000-of-00001.parquet": (
            Features(
                {
                    "id": TEXT,
                    "imageId": TEXT,
                    "question": TEXT,
                    "answer": TEXT,
                    "fullAnswer": TEXT,
                    "isBalanced": Value("bool"),
                    "types": {"structural": TEXT, "semantic": TEXT, "detailed": TEXT},
                    "semanticStr": TEXT,
                }
            ),
            [
                {"id": "201", "imageId": "n7", "question": "Is it left of the dog?", "answer": "no"}
                | {"types": {"structural": "verify", "semantic": "rel", "detailed": "existRelS"}},
                {"id": "202", "imageId": "n5", "question": "Which room is it?", "answer": "kitchen"}
                | {"types": {"structural": "query", "semantic": "global", "detailed": "place"}},
                {"id": "203", "imageId": "n7", "question": "What colour is it?", "answer": "red"}
                | {"types": {"structural": "query", "semantic": "attr", "detailed": "directOf"}},
            ],
        ),
        "testdev_balanced_images/testdev-00000-of-00001.parquet": (
            Features({"id": TEXT, "image": IMAGE}),
            [{"id": "n5", "image": picture(0)}, {"id": "n6", "image": picture(1)}, {"id": "n7", "image": picture(2)}],
        ),
    },
    [
        asked("201", f"Is it left of the dog?{SHORT}", "no", kind="relation", group="n7"),
        asked("202", f"Which room is it?{SHORT}", "kitchen", kind="global", group="n5"),
        asked("203", f"What colour is it?{SHORT}", "red", kind="attribute", group="n7"),
    ],
    "exact_match",
    pictures=(2, 0, 2),
)

VQAV2 = Published(
    {
        f"data/validation-0000{shard}-of-00002.parquet": (
            Features(
                {
                    "question_type": TEXT,
                    "multiple_choice_answer": TEXT,
                    "answers": [{"answer": TEXT, "answer_confidence": TEXT, "answer_id": LONG}],
                    "image_id": LONG,
                    "answer_type": TEXT,
                    "question_id": LONG,
                    "question": TEXT,
                    "image": IMAGE,
                }
            ),
            [
                {
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": place + 1}
                        for place, answer in enumerate(["two"] * (8 + shard) + ["2"] * (2 - shard))
                    ],
                    "image_id": 262148,
                    "answer_type": "number",
                    "question_id": 262148000 + shard,
                    "question": "How many are there?",
                    "image": picture(shard),
                }
            ],
        )
        for shard in (0, 1)
    },
    [
        asked(
            f"26214800{shard}",
            f"How many are there?{SHORT}",
            *["two"] * (8 + shard),
            *["2"] * (2 - shard),
            kind="number",
            group="262148",
        )
        for shard in (0, 1)
    ],
    "vqa_accuracy",
    pictures=(0, 1),
)

TEXTVQA = Published(
    {
        "data/validation-00000-of-00001.parquet": (
            Features(
                {
                    "image_id": TEXT,
                    "question_id": INT32,
                    "question": TEXT,
                    "question_tokens": TEXTS,
                    "image": IMAGE,
                    "image_width": INT32,
                    "image_height": INT32,
                    "flickr_original_url": TEXT,
                    "flickr_300k_url": TEXT,
                    "answers": TEXTS,
                    "image_classes": TEXTS,
                    "set_name": TEXT,
                    "ocr_tokens": TEXTS,
                }
            ),
            [
                {"image_id": "003a", "question_id": 34602, "question": "what is the brand of this camera?"}
                | {"image": picture(3), "answers": ["dakota"] * 9 + ["nous les gosses"], "ocr_tokens": ["DAKOTA"]}
            ],
        )
    },
    [asked("34602", f"What is the brand of this camera?{SHORT}", *["dakota"] * 9, "nous les gosses", group="003a")],
    "vqa_accuracy",
    pictures=(3,),
)

POPE = Published(
    {
        "data/test-00000-of-00001.parquet": (
            Features(
                {
                    "id": TEXT,
                    "question_id": TEXT,
                    "question": TEXT,
                    "answer": TEXT,
                    "image_source": TEXT,
                    "image": IMAGE,
                    "category": TEXT,
                }
            ),
            [
                {"id": "0", "question_id": "1", "question": "Is there a snowboard in the image?", "answer": "yes"}
                | {"image_source": "COCO_val2014_000000310196", "image": picture(0), "category": "adversarial"},
                {"id": "3000", "question_id": "1", "question": "Is there a cup in the image?", "answer": "no"}
                | {"image_source": "COCO_val2014_000000310196", "image": picture(0), "category": "popular"},
            ],
        )
    },
    [
        asked("adversarial-1", f"Is there a snowboard in the image?{SHORT}", "yes", kind="adversarial")
        | {"group": "COCO_val2014_000000310196"},
        asked("popular-1", f"Is there a cup in the image?{SHORT}", "no", kind="popular")
        | {"group": "COCO_val2014_000000310196"},
    ],
    "yes_no",
    pictures=(0, 0),
)

MME = Published(
    {
        "data/test-00000-of-00001-a25dbe3b44c4fda6.parquet": (
            Features({"question_id": TEXT, "image": IMAGE, "question": TEXT, "answer": TEXT, "category": TEXT}),
            [
                {"question_id": "OCR/0001.jpg", "image": picture(1), "category": "OCR", "answer": answer}
                | {"question": f'Is the word in the logo "{word}"? Please answer yes or no.'}
                for word, answer in (("angie's", "Yes"), ("angle's", "No"))
            ],
        )
    },
    [
        asked("OCR/0001.jpg", f'Is the word in the logo "angie\'s"?{SHORT}', "Yes", kind="OCR", group="OCR/0001.jpg"),
        asked("OCR/0001.jpg#2", f'Is the word in the logo "angle\'s"?{SHORT}', "No", kind="OCR", group="OCR/0001.jpg"),
    ],
    "mme",
    pictures=(1, 1),
)

MMBENCH = Published(
    {
        "en/dev-00000-of-00001.parquet": (
            Features(
                {
                    "index": TEXT,
                    "question": TEXT,
                    "hint": TEXT,
                    "answer": TEXT,
                    "A": TEXT,
                    "B": TEXT,
                    "C": TEXT,
                    "D": TEXT,
                    "category": TEXT,
                    "image": IMAGE,
                    "source": TEXT,
                    "L2-category": TEXT,
                    "comment": TEXT,
                    "split": TEXT,
                }
            ),
            [
                {"index": "241", "question": "Which is north?", "hint": "A map.", "answer": "B", "A": "Maine"}
                | {"B": "Ohio", "C": "Utah", "D": "nan", "category": "spatial_relationship", "image": picture(2)},
                {"index": "1000241", "question": "Which is north?", "hint": "nan", "answer": "A", "A": "Ohio"}
                | {"B": "Utah", "C": "nan", "D": None, "category": "spatial_relationship", "image": picture(2)},
            ],
        )
    },
    [
        asked("241", "A map.\nWhich is north?", "Ohio", group="241", choices=("Maine", "Ohio", "Utah"))
        | {"kind": "spatial_relationship"},
        asked("1000241", "Which is north?", "Ohio", group="241", choices=("Ohio", "Utah"))
        | {"kind": "spatial_relationship"},
    ],
    "letter",
    pictures=(2, 2),
)

SCIENCEQA = Published(
    {
        "ScienceQA-IMG/test-00000-of-00001.parquet": (
            Features(
                {
                    "image": IMAGE,
                    "question": TEXT,
                    "choices": TEXTS,
                    "answer": INT8,
                    "hint": TEXT,
                    "task": TEXT,
                    "grade": TEXT,
                    "subject": TEXT,
                    "topic": TEXT,
                    "category": TEXT,
                    "skill": TEXT,
                    "lecture": TEXT,
                    "solution": TEXT,
                }
            ),
            [
                {"image": picture(0), "question": "Which is solid?", "choices": ["milk", "stone"], "answer": 1}
                | {"hint": "Solids keep their shape.", "subject": "natural science"},
                {"image": picture(1), "question": "Which is it?", "choices": ["Peru", "Chile", "Cuba"], "answer": 0}
                | {"hint": "", "subject": "social science"},
            ],
        )
    },
    [
        asked("0", "Context: Solids keep their shape.\nWhich is solid?", "stone", kind="natural science")
        | {"choices": ("milk", "stone")},
        asked("1", "Which is it?", "Peru", kind="social science", choices=("Peru", "Chile", "Cuba")),
    ],
    "letter",
    pictures=(0, 1),
)

CHARTQA = Published(
    {
        "data/test-00000-of-00001.parquet": (
            Features({"type": TEXT, "question": TEXT, "answer": TEXT, "image": IMAGE}),
            [
                {"type": "human_test", "question": "How many bars?", "answer": "14", "image": picture(0)},
                {"type": "augmented_test", "question": "Which year?", "answer": "2019", "image": picture(1)},
            ],
        )
    },
    [
        asked("0", "How many bars?\nAnswer the question with a single word.", "14", kind="human"),
        asked("1", "Which year?\nAnswer the question with a single word.", "2019", kind="augmented"),
    ],
    "relaxed_accuracy",
    pictures=(0, 1),
)

DOCVQA = Published(
    {
        "DocVQA/validation-00000-of-00001.parquet": (
            Features(
                {
                    "questionId": TEXT,
                    "question": TEXT,
                    "question_types": TEXTS,
                    "image": IMAGE,
                    "docId": LONG,
                    "ucsf_document_id": TEXT,
                    "ucsf_document_page_no": TEXT,
                    "answers": TEXTS,
                    "data_split": TEXT,
                }
            ),
            [
                {"questionId": "49153", "question": "What is the value?", "question_types": ["table/list", "form"]}
                | {"image": picture(0), "ucsf_document_id": "pybv0228", "ucsf_document_page_no": "81"}
                | {"answers": ["0.28", "28"], "docId": 14465},
                {"questionId": "24580", "question": "Who signs?", "question_types": None}
                | {"image": picture(1), "ucsf_document_id": "nkbl0226", "ucsf_document_page_no": "1"}
                | {"answers": ["T.F. Riehl"], "docId": 7573},
            ],
        )
    },
    [
        asked("49153", f"What is the value?{SHORT}", "0.28", "28", kind="form + table/list", group="pybv0228-81"),
        asked("24580", f"Who signs?{SHORT}", "T.F. Riehl", group="nkbl0226-1"),
    ],
    "anls",
    pictures=(0, 1),
)

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

PUBLISHED = {
    "gqa": GQA,
    "vqav2": VQAV2,
    "textvqa": TEXTVQA,
    "pope": POPE,
    "mme": MME,
    "mmbench": MMBENCH,
    "scienceqa": SCIENCEQA,
    "chartqa": CHARTQA,
    "docvqa": DOCVQA,
    "videomme": VIDEOMME,
    "mvbench": MVBENCH,
    "mlvu": MLVU,
    "nextqa": NEXTQA,
    "egoschema": EGOSCHEMA,
}
