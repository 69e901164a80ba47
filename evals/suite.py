"""The test of tiny-llava, and of what pruning costs it: questions about pictures it has never seen, answered in full.

Any other vision-language model can be asked as well, by its own processor's chat template.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vtprune.evals.questions import KINDS, Question, ask
from vtprune.evals.scenes import SIZE, TEST_SEED_START, draw_scene, make_scene

_SEEDS_PER_SUITE = 10**9
_BLANK = (128, 128, 128)


@dataclass(frozen=True)
class SceneQuestion:
    """A question about the scene of a seed."""

    seed: int
    question: Question


def scene_questions(n: int, seed: int = 0, *, kinds: Sequence[str] = KINDS) -> list[SceneQuestion]:
    """Questions about test pictures, all kinds equally often (the first ones once more where `n` does not divide).

    At most one question of each kind is asked about a picture; those about the same picture stand together.

    Args:
        n: How many.
        seed: Which test set. Sets of different seeds share no picture, nor does any with training or `held_out`.
        kinds: The kinds of questions.

    Raises:
        ValueError: If `n` or `seed` is out of range or a kind is unknown.
    """
    if n < 1 or seed < 0:
        raise ValueError(f"n must be >= 1 and seed >= 0, got n={n} and seed={seed}")
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds:
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {list(kinds)}")
    wanted = {kind: n // len(kinds) + (place < n % len(kinds)) for place, kind in enumerate(kinds)}
    found: list[SceneQuestion] = []
    # The first range is that of the held-out and the example pictures.
    picture = TEST_SEED_START + _SEEDS_PER_SUITE * (1 + seed)
    while any(wanted.values()):
        scene, rng = make_scene(picture), np.random.default_rng((picture, 7))
        for kind in kinds:
            question = ask(scene, rng, kind) if wanted[kind] else None
            if question is not None:
                found.append(SceneQuestion(picture, question))
                wanted[kind] -= 1
        picture += 1
    return found


@functools.lru_cache(maxsize=512)
def scene_picture(seed: int) -> Image.Image:
    """The picture of a seed, 224 x 224 pixels."""
    return draw_scene(make_scene(seed))


def ask_model(model: Any, processor: Any, pictures: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
    """Ask a batch of questions, each about its picture, and return the answers, stripped and in lower case.

    This is the ordinary path of transformers: chat template, processor with left padding, `model.generate`.
    """
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
        )
        for question in questions
    ]
    processor.tokenizer.padding_side = "left"
    inputs = processor(images=list(pictures), text=texts, padding=True, return_tensors="pt")
    inputs = inputs.to(model.device, dtype=model.dtype)
    with torch.no_grad():
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    behind = generated[:, inputs["input_ids"].shape[1] :]
    return [answer.strip().lower() for answer in processor.batch_decode(behind, skip_special_tokens=True)]


def evaluate(
    model: Any,
    processor: Any,
    questions: Sequence[SceneQuestion],
    *,
    batch_size: int = 32,
    blank: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Share of right answers: the whole answer has to be the expected one, case aside.

    Args:
        model: A model with vtprune methods applied to it, or without.
        processor: Its processor.
        questions: What to ask, see `scene_questions`.
        batch_size: Questions per call of `generate`.
        blank: Show a grey picture instead, to see what can be guessed from the question alone.
        on_batch: Called after every batch with its number of questions.

    Returns:
        "accuracy" (0 .. 1), "n" and "by_kind" (accuracy of each kind that was asked).

    Raises:
        ValueError: If there are no questions, or `batch_size` is less than 1.
    """
    if not questions or batch_size < 1:
        raise ValueError(f"questions must not be empty and batch_size >= 1, got {len(questions)} and {batch_size}")
    grey = Image.new("RGB", (SIZE, SIZE), _BLANK)
    right: dict[str, list[bool]] = {}
    for first in range(0, len(questions), batch_size):
        batch = questions[first : first + batch_size]
        pictures = [grey if blank else scene_picture(item.seed) for item in batch]
        answers = ask_model(model, processor, pictures, [item.question.text for item in batch])
        for item, answer in zip(batch, answers, strict=True):
            right.setdefault(item.question.kind, []).append(answer == item.question.answer.lower())
        if on_batch is not None:
            on_batch(len(batch))
    return {
        "accuracy": sum(map(sum, right.values())) / len(questions),
        "n": len(questions),
        "by_kind": {kind: sum(right[kind]) / len(right[kind]) for kind in KINDS if kind in right},
    }
