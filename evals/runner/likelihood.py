"""Multiple choice by likelihood: of the choices, the one that the model with its methods finds likeliest."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch

from vtprune.evals.likelihood import read_answers
from vtprune.evals.runner.answering import Answered, synchronize
from vtprune.inputs import Ask, continuation
from vtprune.models import Loaded


def likeliest(loaded: Loaded, inputs: Any, asks: Sequence[Ask], choices: Sequence[Sequence[str]]) -> Answered:
    """Find each question's likeliest choice.

    The prompt is prefilled as always, so that methods see what they see in use; every choice is then read as the
    answer, on a copy of the cache, with the tokens that the chat template puts behind it. The likelihood of a choice is
    the sum over its tokens, not divided by its length. Of equally likely ones the first is the answer.

    Args:
        loaded: Model and processor.
        inputs: Of the prompts, see `vtprune.inputs.make_batch`.
        asks: What they were made of.
        choices: Of each question.

    Raises:
        ValueError: The chat template does not continue its prompt with the answer.
    """
    device = loaded.model.device
    ids = [[continuation(loaded, ask, choice) for choice in own] for ask, own in zip(asks, choices, strict=True)]
    synchronize(device)
    start = time.perf_counter()
    with torch.inference_mode():
        output = loaded.model(**inputs, use_cache=True, logits_to_keep=1)
        first = output.logits[:, -1].float()
        synchronize(device)
        known = time.perf_counter()
        found = [[0.0] * len(own) for own in choices]
        for number in range(max(map(len, choices))):
            # Rows without such a choice read their first one again; it is not looked at.
            tokens = [own[number] if number < len(own) else own[0] for own in ids]
            cache = copy.deepcopy(output.past_key_values)
            values, _ = read_answers(loaded.model, inputs["attention_mask"], cache, first, tokens)
            for row, value in enumerate(values):
                if number < len(choices[row]):
                    found[row][number] = value
    synchronize(device)
    end = time.perf_counter()
    best = [max(range(len(own)), key=own.__getitem__) for own in found]
    return Answered(
        [own[place] for own, place in zip(choices, best, strict=True)],
        first,
        1000 * (known - start),
        1000 * (end - start),
        [len(own[place]) for own, place in zip(ids, best, strict=True)],
        likelihoods=[tuple(round(value, 5) for value in own) for own in found],
    )
