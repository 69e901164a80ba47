"""The test of a tiny model, and of what pruning costs it: questions about what it has never seen, answered in full.

About pictures (`scene_questions`) or about clips (`vtprune.evals.clip_suite.questions_about_clips`).

Any other vision-language model can be asked as well, by its own processor's chat template.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vtprune.evals.clip_questions import CLIP_KINDS
from vtprune.evals.clip_suite import ClipQuestion, clip_frames
from vtprune.evals.clips import make_clip
from vtprune.evals.questions import KINDS, Question, ask
from vtprune.evals.scenes import SIZE, TEST_SEED_START, draw_scene, make_scene

_SEEDS_PER_SUITE = 10**9
_GREY = 128
BLANK = Image.new("RGB", (SIZE, SIZE), (_GREY,) * 3)
"""What is shown to see what can be guessed."""


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


def prompt_text(processor: Any, question: str, clips: bool, answer: str | None = None) -> str:
    """The prompt of a question by the processor's chat template, or the whole conversation with an answer."""
    parts = [{"type": "video" if clips else "image"}, {"type": "text", "text": question}]
    conversation: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    if answer is not None:
        conversation.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text: str = processor.apply_chat_template(conversation, add_generation_prompt=answer is None)
    return text


def prompt_inputs(
    model: Any, processor: Any, seen: Sequence[Image.Image | np.ndarray], questions: Sequence[str]
) -> Any:
    """What the processor makes of a batch of questions, padded on the left; see `ask_model`."""
    clips = isinstance(seen[0], np.ndarray)
    texts = [prompt_text(processor, question, clips) for question in questions]
    processor.tokenizer.padding_side = "left"
    shown = {"videos" if clips else "images": list(seen)}
    inputs = processor(text=texts, padding=True, return_tensors="pt", **shown)
    return inputs.to(model.device, dtype=model.dtype)


def ask_model(
    model: Any, processor: Any, seen: Sequence[Image.Image | np.ndarray], questions: Sequence[str]
) -> list[str]:
    """Ask a batch of questions, each about its picture or clip; returns the answers, stripped and in lower case.

    This is the ordinary path of transformers: chat template, processor with left padding, `model.generate`.

    Args:
        model: The model.
        processor: Its processor.
        seen: Pictures, or clips as arrays of frames, (frames, height, width, 3) uint8; all of one sort.
        questions: One for each of them.
    """
    inputs = prompt_inputs(model, processor, seen, questions)
    with torch.no_grad():
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    behind = generated[:, inputs["input_ids"].shape[1] :]
    return [answer.strip().lower() for answer in processor.batch_decode(behind, skip_special_tokens=True)]


def judge(
    model: Any,
    processor: Any,
    questions: Sequence[SceneQuestion] | Sequence[ClipQuestion],
    *,
    batch_size: int = 32,
    blank: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> list[tuple[SceneQuestion | ClipQuestion, bool]]:
    """Every question and whether it was answered rightly, always in the same order; see `evaluate`."""
    if not questions or batch_size < 1:
        raise ValueError(f"questions must not be empty and batch_size >= 1, got {len(questions)} and {batch_size}")
    judged: list[tuple[SceneQuestion | ClipQuestion, bool]] = []
    for batch in by_shape(questions, batch_size):
        shown = [seen(item, blank) for item in batch]
        answers = ask_model(model, processor, shown, [item.question.text for item in batch])
        judged += [(x, answer == x.question.answer.lower()) for x, answer in zip(batch, answers, strict=True)]
        if on_batch is not None:
            on_batch(len(batch))
    return judged


def evaluate(
    model: Any,
    processor: Any,
    questions: Sequence[SceneQuestion] | Sequence[ClipQuestion],
    *,
    batch_size: int = 32,
    blank: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Share of right answers: the whole answer has to be the expected one, case aside.

    Args:
        model: A model with vtprune methods applied to it, or without.
        processor: Its processor.
        questions: What to ask, see `scene_questions` and `questions_about_clips`.
        batch_size: Questions per call of `generate`; fewer where clips of one length run out.
        blank: Show a grey picture or clip instead, to see what can be guessed from the question alone.
        on_batch: Called after every batch with its number of questions.

    Returns:
        "accuracy" (0 .. 1), "n" and "by_kind" (accuracy of each kind that was asked).

    Raises:
        ValueError: If there are no questions, or `batch_size` is less than 1.
    """
    judged = judge(model, processor, questions, batch_size=batch_size, blank=blank, on_batch=on_batch)
    right: dict[str, list[bool]] = {}
    for item, good in judged:
        right.setdefault(item.question.kind, []).append(good)
    return {
        "accuracy": sum(map(sum, right.values())) / len(questions),
        "n": len(questions),
        "by_kind": {kind: sum(right[kind]) / len(right[kind]) for kind in (*KINDS, *CLIP_KINDS) if kind in right},
    }


def by_shape(
    questions: Sequence[SceneQuestion] | Sequence[ClipQuestion], batch_size: int
) -> Iterator[Sequence[SceneQuestion | ClipQuestion]]:
    """Batches in order; those of clips by length, as not every processor takes clips of several lengths at once."""
    groups: dict[int, list[SceneQuestion | ClipQuestion]] = {}
    for item in questions:
        groups.setdefault(make_clip(item.seed).frames if isinstance(item, ClipQuestion) else 0, []).append(item)
    for group in groups.values():
        for first in range(0, len(group), batch_size):
            yield group[first : first + batch_size]


def seen(item: SceneQuestion | ClipQuestion, blank: bool = False) -> Image.Image | np.ndarray:
    """What a question is about: a picture, or a clip as an array of frames; a grey one on demand."""
    if isinstance(item, ClipQuestion):
        frames = clip_frames(item.seed)
        return np.full_like(frames, _GREY) if blank else np.array(frames)
    return BLANK if blank else scene_picture(item.seed)
