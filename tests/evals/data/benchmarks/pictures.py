"""Samples of the benchmarks about pictures."""

from __future__ import annotations

from datasets import Features, Value

from tests.evals.data.benchmarks.published import (
    IMAGE,
    INT8,
    INT32,
    LONG,
    SHORT,
    TEXT,
    TEXTS,
    Published,
    asked,
    picture,
)

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
