"""What a further turn finds in the cache that a method has left: a second question about a picture shown once.

The first answer is given, as it should be, and nothing is computed twice: the second question is all that is added to
the cache of the first prompt. A method that has looked at the first question kept what that one needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from vtprune.evals.questions import KINDS
from vtprune.evals.suite import BLANK, SceneQuestion, scene_picture, scene_questions

Pair = tuple[SceneQuestion, SceneQuestion]


def question_pairs(n: int, seed: int = 0) -> list[Pair]:
    """Two questions each about one test picture, of different kinds; a picture may have several pairs.

    Args:
        n: How many.
        seed: Which test set, see `scene_questions`.
    """
    questions = 2 * n
    while True:
        pairs = [(a, b) for a, b in itertools.pairwise(scene_questions(questions, seed)) if a.seed == b.seed]
        if len(pairs) >= n:
            return pairs[:n]
        questions *= 2


def evaluate_turns(
    model: Any,
    processor: Any,
    pairs: Sequence[Pair],
    *,
    batch_size: int = 32,
    blank: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Share of right answers to the second questions, as `vtprune.evals.suite.evaluate` has it.

    Args:
        model: A model with vtprune methods applied to it, or without.
        processor: Its processor.
        pairs: What to ask, see `question_pairs`.
        batch_size: Pairs per batch; fewer, as all of a batch add equally many tokens.
        blank: Show a grey picture instead.
        on_batch: Called with the number of pairs of each batch, once the pictures have been shown.
    """
    right: dict[str, list[bool]] = {}
    processor.tokenizer.padding_side = "left"
    for batch in _batches(processor, pairs, batch_size):
        pictures = [BLANK if blank else scene_picture(pair[0].seed) for pair, *_ in batch]
        inputs = processor(text=[first for _, first, _ in batch], images=pictures, padding=True, return_tensors="pt")
        inputs = inputs.to(model.device, dtype=model.dtype)
        with torch.no_grad():
            cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
            if on_batch is not None:
                on_batch(len(batch))
            whole = _conversation(inputs, torch.tensor([more for *_, more in batch], device=model.device))
            generated = model.generate(**whole, past_key_values=cache, do_sample=False, max_new_tokens=16)
        answers = processor.batch_decode(generated[:, whole["input_ids"].shape[1] :], skip_special_tokens=True)
        for ((_, asked), *_), answer in zip(batch, answers, strict=True):
            is_right = answer.strip().lower() == asked.question.answer.lower()
            right.setdefault(asked.question.kind, []).append(is_right)
    return {
        "accuracy": sum(map(sum, right.values())) / len(pairs),
        "n": len(pairs),
        "by_kind": {kind: sum(right[kind]) / len(right[kind]) for kind in KINDS if kind in right},
    }


def _batches(processor: Any, pairs: Sequence[Pair], batch_size: int) -> Iterator[list[tuple[Pair, str, list[int]]]]:
    """Pairs with the first prompt and the tokens that are added to it: as many in all of a batch."""
    groups: dict[int, list[tuple[Pair, str, list[int]]]] = {}
    for pair in pairs:
        (first, second), turns = pair, []
        turns.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": first.question.text}]})
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
        turns.append({"role": "assistant", "content": [{"type": "text", "text": first.question.answer.lower()}]})
        turns.append({"role": "user", "content": [{"type": "text", "text": second.question.text}]})
        both = processor.apply_chat_template(turns, add_generation_prompt=True)
        if not both.startswith(prompt):
            raise ValueError("the chat template must be one that only adds to a conversation.")
        more = processor.tokenizer(both[len(prompt) :], add_special_tokens=False)["input_ids"]
        groups.setdefault(len(more), []).append((pair, prompt, more))
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _conversation(inputs: Any, more: torch.Tensor) -> dict[str, Any]:
    """What `generate` needs to go on: all of the text, and what positions follow from, but no pictures."""
    added = {"input_ids": more, "attention_mask": torch.ones_like(more), "mm_token_type_ids": torch.zeros_like(more)}
    whole = {name: torch.cat((inputs[name], x), 1) for name, x in added.items() if name in inputs}
    return whole | {name: inputs[name] for name in ("image_grid_thw",) if name in inputs}
