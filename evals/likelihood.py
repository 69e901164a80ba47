"""How likely a model finds given answers behind a prompt that has been prefilled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtprune.integrations import integrate


def read_answers(
    model: Any, mask: Tensor, cache: Any, first: Tensor, answers: Sequence[Sequence[int]]
) -> tuple[list[float], list[bool]]:
    """Read an answer behind each prompt of a batch, with the cache that the prefill left, methods and all.

    Args:
        model: The model.
        mask: Attention mask of the prompts, (rows, slots), padded on the left.
        cache: What the prefill returned; it is written to.
        first: Logits of the first token behind each prompt, (rows, vocabulary).
        answers: Tokens of each row's answer, at least one.

    Returns:
        The log-likelihood of each answer, summed over its tokens, in nats; and whether each of its tokens was the
        likeliest one, which is what greedy decoding would give.
    """
    longest = max(map(len, answers))
    ids, there = mask.new_zeros(len(answers), longest), mask.new_zeros(len(answers), longest, dtype=torch.bool)
    for row, own in enumerate(answers):
        ids[row, : len(own)], there[row, : len(own)] = ids.new_tensor(own), True
    logits = [first[:, None].float()]
    if longest > 1:
        known = ids[:, :-1]
        whole = torch.cat((mask, torch.ones_like(known)), 1)
        output = model(
            input_ids=known,
            attention_mask=whole,
            past_key_values=cache,
            position_ids=_positions(model, whole, known.shape[1]),
        )
        logits.append(output.logits[:, -known.shape[1] :].float())
    probabilities = torch.cat(logits, 1).log_softmax(-1)
    likelihood = probabilities.gather(2, ids.unsqueeze(2)).squeeze(2).masked_fill(~there, 0).sum(1)
    greedy = ((probabilities.argmax(-1) == ids) | ~there).all(1)
    return likelihood.tolist(), greedy.tolist()


def _positions(model: Any, mask: Tensor, new: int) -> Tensor | None:
    """Position ids of so many last slots where a model needs to be told (M-RoPE), as `generate` tells it."""
    deltas = getattr(integrate(model).multimodal, "rope_deltas", None)
    return None if deltas is None else (mask.long().cumsum(1)[:, -new:] - 1 + deltas).expand(3, -1, -1)
