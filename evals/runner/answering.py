"""One batch under one configuration: answers, the first token's logits, and the time it took."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vtprune.models import Loaded
from vtprune.report import Report


@dataclasses.dataclass(frozen=True)
class Answered:
    """What a model said to a batch.

    Args:
        texts: The answers, without special tokens and surrounding space.
        logits: Of the first token, (questions, vocabulary), float32.
        ttft_ms: Time to the first token, milliseconds.
        time_ms: Time of the whole call, milliseconds.
        new_tokens: Tokens of each answer, the end's included.
        report: What was saved; None without methods.
        likelihoods: Of each question's choices, in nats, where they were asked for.
    """

    texts: list[str]
    logits: Tensor
    ttft_ms: float
    time_ms: float
    new_tokens: list[int]
    report: Report | None = None
    likelihoods: list[tuple[float, ...]] | None = None


class FirstToken(LogitsProcessor):
    """Notes when the first token of an answer is known, and its logits; changes nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.logits: Tensor | None = None
        self.at = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Called by `generate` for every token."""
        if self.logits is None:
            synchronize(self.device)
            self.at = time.perf_counter()
            self.logits = scores.float().clone()
        return scores


def answer(loaded: Loaded, inputs: Any, max_new_tokens: int, *, do_sample: bool = False, **settings: Any) -> Answered:
    """Answer a batch by ordinary generation, greedy by default, with whatever is applied to the model.

    Args:
        loaded: Model and processor.
        inputs: As `vtprune.inputs.make_batch` makes them.
        max_new_tokens: Answers are cut off there.
        do_sample: Draw tokens at random.
        **settings: Further ones of `generate`.
    """
    model, device = loaded.model, loaded.model.device
    first = FirstToken(device)
    synchronize(device)
    start = time.perf_counter()
    with torch.inference_mode():
        generated = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            logits_processor=LogitsProcessorList([first]),
            **settings,
        )
    synchronize(device)
    end = time.perf_counter()
    if first.logits is None:
        raise RuntimeError("the model's generate called no logits processor, so that no first token was seen.")
    new = generated[:, inputs["input_ids"].shape[1] :]
    texts = loaded.processor.batch_decode(new, skip_special_tokens=True)
    return Answered(
        [text.strip() for text in texts],
        first.logits,
        1000 * (first.at - start),
        1000 * (end - start),
        _lengths(new, model.generation_config.eos_token_id),
    )


def synchronize(device: torch.device) -> None:
    """Wait for a device, so that a clock tells the truth."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _lengths(new: Tensor, ends: int | Sequence[int] | None) -> list[int]:
    """Tokens of each row up to and with its end."""
    stops = torch.tensor([] if ends is None else [ends] if isinstance(ends, int) else list(ends), device=new.device)
    ended = torch.isin(new, stops.to(new.dtype)).int()
    behind = ended.cumsum(1) - ended
    return (behind == 0).sum(1).tolist()
