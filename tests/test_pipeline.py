"""transformers' own pipeline runs unchanged on a model with methods, only cheaper."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from transformers import pipeline

import vtprune
from vtprune.models import load_model, shipped_example


@pytest.fixture(scope="module")
def loaded():
    return load_model("tiny-llava")


def test_image_text_to_text(loaded):
    path, question = shipped_example()
    expected = {e["question"]: e["answer"] for e in json.loads((path.parent / "examples.json").read_text())}[question]
    ask = pipeline("image-text-to-text", model=loaded.model, processor=loaded.processor)
    content = [{"type": "image", "image": Image.open(path)}, {"type": "text", "text": question}]
    message = {"role": "user", "content": content}

    def answer() -> str:
        return ask(text=[message], max_new_tokens=8, return_full_text=False)[0]["generated_text"].strip()

    assert answer() == expected
    with vtprune.applied(loaded.model, "fastervlm", keep=0.5):
        assert answer() == expected
        report = vtprune.report(loaded.model)
        assert (report.visual_tokens_before, report.visual_tokens_after) == (256, 128)
        assert "256 -> 128 visual tokens" in str(report)
    assert answer() == expected
