"""The model and the examples that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtprune.evals
from vtprune.evals.clips import draw_clip
from vtprune.evals.make_example_clips import candidates, example_questions
from vtprune.evals.questions import Question
from vtprune.evals.suite import ask_model
from vtprune.evals.tiny_llava import new_model
from vtprune.models import shipped_example

FOLDER = Path(vtprune.evals.__file__).parent
MODEL = FOLDER / "models" / "tiny-llava"
EXAMPLES = FOLDER / "examples"

pytestmark = pytest.mark.skipif(not MODEL.exists(), reason="tiny-llava has not been trained yet")


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForImageTextToText.from_pretrained(MODEL), AutoProcessor.from_pretrained(MODEL)


def test_size_and_shape(shipped):
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 20_000_000
    fresh, state = new_model().state_dict(), shipped[0].state_dict()
    assert {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in fresh.items()}
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())


def test_its_processor_is_ours(shipped, processor):
    assert shipped[1].tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert shipped[1].chat_template == processor.chat_template
    assert shipped[1].image_processor.to_dict() == processor.image_processor.to_dict()


def test_it_answers_the_examples(shipped):
    examples = [e for e in json.loads((EXAMPLES / "examples.json").read_text()) if not e.get("video")]
    assert len({example["file"] for example in examples}) >= 4
    for file in {example["file"] for example in examples}:
        assert (EXAMPLES / file).stat().st_size < 150_000
    pictures = [Image.open(EXAMPLES / example["file"]).convert("RGB") for example in examples]
    answers = ask_model(*shipped, pictures, [example["question"] for example in examples])
    assert answers == [example["answer"].lower() for example in examples]


def test_example_clips():
    examples = json.loads((EXAMPLES / "examples.json").read_text())
    assert not examples[0].get("video")  # what `vtprune run` asks by default
    assert shipped_example()[0].suffix == ".png"
    about = {e["file"]: [] for e in examples if e.get("video")}
    assert len(about) == 2
    for example in examples:
        if example.get("video"):
            about[example["file"]].append(Question("", example["question"], example["answer"]))
    for (file, asked), clip in zip(about.items(), candidates(), strict=False):
        assert (EXAMPLES / file).stat().st_size < 60_000
        assert [(q.text, q.answer) for q in asked] == [(q.text, q.answer) for q in example_questions(clip)]
        with av.open(str(EXAMPLES / file)) as video:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
        assert np.abs(frames.astype(int) - draw_clip(clip)).mean() < 4
