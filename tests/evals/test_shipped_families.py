"""tiny-internvl and tiny-qwen2.5-vl as they come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtprune.evals
from vtprune.evals.clip_suite import clip_frames, questions_about_clips
from vtprune.evals.suite import ask_model, evaluate, scene_questions
from vtprune.evals.tiny_llava import new_model
from vtprune.evals.train_family import RECIPES

FOLDER = Path(vtprune.evals.__file__).parent
NAMES = [name for name in RECIPES if (FOLDER / "models" / name).exists()]


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def shipped(name):
    folder = FOLDER / "models" / name
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def test_size_and_shape(name, shipped):
    assert sum(path.stat().st_size for path in (FOLDER / "models" / name).iterdir()) <= 20_000_000
    fresh, state = RECIPES[name][0].new_model(new_model()), shipped[0].state_dict()
    assert {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in fresh.state_dict().items()}
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())


def test_its_processor_is_ours(name, shipped):
    ours = RECIPES[name][0].build_processor()
    assert shipped[1].tokenizer.get_vocab() == ours.tokenizer.get_vocab()
    assert shipped[1].chat_template == ours.chat_template
    assert shipped[1].image_processor.to_dict() == ours.image_processor.to_dict()
    assert shipped[1].video_processor.to_dict() == ours.video_processor.to_dict()


def test_it_answers_about_pictures(shipped):
    assert evaluate(*shipped, scene_questions(48), batch_size=16)["accuracy"] >= 0.85
    examples = json.loads((FOLDER / "examples" / "examples.json").read_text())
    about_pictures = [example for example in examples if not example.get("video")]
    pictures = [Image.open(FOLDER / "examples" / example["file"]).convert("RGB") for example in about_pictures]
    answers = ask_model(*shipped, pictures, [example["question"] for example in about_pictures])
    right = [answer == example["answer"].lower() for answer, example in zip(answers, about_pictures, strict=True)]
    assert np.mean(right) >= 0.75


def test_it_takes_clips(name, shipped):
    questions = questions_about_clips(40)
    if name == "tiny-qwen2.5-vl":  # tiny-internvl takes clips, but has not been trained on enough of them
        assert evaluate(*shipped, questions, batch_size=8)["accuracy"] >= 0.8
    for item in questions[:2]:
        (answer,) = ask_model(*shipped, [np.array(clip_frames(item.seed))], [item.question.text])
        assert answer
