"""Dense sequences give what the ordinary prompts give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from vtprune.evals.dense import IGNORED, SLOT, encode, foreground_first, make_item
from vtprune.evals.questions import KINDS, TEMPLATES, ask, plural
from vtprune.evals.scenes import CHARACTERS, COLOURS, QUADRANTS, SHAPES, draw_scene, make_scene
from vtprune.evals.student import Student, normalised


@pytest.fixture(scope="module")
def items():
    return [make_item(seed, characters=0.6, questions=4) for seed in (3, 4)]


def single_questions(seed: int, count: int) -> list[tuple[str, str]]:
    """The first questions of the kinds, in order, that a scene allows."""
    scene, rng = make_scene(seed, characters=0.6), np.random.default_rng(0)
    asked = [ask(scene, rng, kind) for kind in KINDS]
    return [(q.text, q.answer) for q in asked if q][:count]


def test_dense_logits_are_those_of_single_prompts(model, processor, items):
    batch = default_collate(items)
    questions = {row: single_questions(seed, 4) for row, seed in enumerate((3, 4))}
    for row, asked in questions.items():
        for slot, (question, answer) in enumerate(asked):
            ids, labels = encode(question, answer)
            batch.ids[row, slot], batch.labels[row, slot] = torch.tensor(ids), torch.tensor(labels)
    with torch.no_grad():
        scores = Student(model)(batch).scores
        at = 0
        for row, asked in questions.items():
            picture = draw_scene(make_scene((3, 4)[row], characters=0.6))
            for question, answer in asked:
                text = f"USER: <image>\n{question} ASSISTANT: {answer}</s>"
                inputs = processor(images=picture, text=text, return_tensors="pt")
                logits = model(**inputs).logits[0]
                answered = len(processor.tokenizer(f" {answer}</s>", add_special_tokens=False).input_ids)
                expected = logits[-answered - 1 : -1]
                found = scores[at : at + answered]
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
                assert expected.std() > 0.1
                at += answered
    assert at == len(scores)


def test_labels_are_the_answer(processor, items):
    for item in items:
        for ids, labels in zip(item.ids, item.labels, strict=True):
            wanted = labels != IGNORED
            answer = processor.tokenizer.decode(labels[wanted])
            assert answer.endswith("</s>")
            asked = processor.tokenizer.decode(ids[: int(wanted.nonzero()[0]) + 1])
            assert asked.endswith(" ASSISTANT:")
            assert any(asked.startswith(t.split("{")[0]) for group in TEMPLATES.values() for t in group)


def test_pictures_are_normalised_as_by_the_processor(processor, items):
    expected = processor.image_processor(draw_scene(make_scene(3, characters=0.6)), return_tensors="pt").pixel_values
    torch.testing.assert_close(normalised(items[0].picture[None]), expected)


def test_kept_tokens_stay_at_their_positions(model, items):
    batch = default_collate(items)
    student = Student(model)
    with torch.no_grad():
        everything = torch.arange(256).expand(2, -1)
        torch.testing.assert_close(student(batch, everything).scores, student(batch).scores)
        few = foreground_first(batch.targets, 100, torch.Generator().manual_seed(0))
        assert few.shape == (2, 100)
        assert not torch.allclose(student(batch, few).scores, student(batch).scores)
    objects = batch.targets.words[..., 0] > 0
    assert (objects.gather(1, few).sum(1) == objects.sum(1).clamp(max=100)).all()
    assert (few.diff(dim=1) > 0).all()


def test_every_question_and_answer_fits_a_slot():
    answers = {"colour": COLOURS, "shape": SHAPES, "where": QUADRANTS, "count": "0123456789", "exists": ("yes", "no")}
    answers["read"] = CHARACTERS
    for kind, templates in TEMPLATES.items():
        texts = {
            template.format(colour=colour, shape=shape, things=things)
            for template in templates
            for colour in COLOURS
            for shape in SHAPES
            for things in (plural(shape), f"{colour} objects", "objects")
        }
        longest = max(texts, key=lambda text: sum(id != 0 for id in encode(text, "3")[0]))
        assert all(encode(longest, answer) for answer in answers[kind]), longest


def test_items_are_reproducible():
    for one, two in zip(make_item(5, characters=0.6), make_item(5, characters=0.6), strict=True):
        for a, b in zip(one, two, strict=True) if isinstance(one, tuple) else ((one, two),):
            assert torch.equal(a, b)
    bare = make_item(5, characters=0.6, questions=0)
    assert bare.ids.shape == (0, SLOT)
