"""Times that compare fairly: without and with methods in alternation, over the same number of tokens."""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from typing import Any

import torch

import vtprune
from vtprune.demo.work.answering import Answer, Clock, stop_at
from vtprune.methods import Method
from vtprune.models import Loaded

ROUNDS = 5
TOKENS = 17
"""Decoded in a round: the first, whose time is the time to first token, and 16 more, whose rate is that of decoding."""

PATIENCE = 8.0
"""Seconds after which no further round begins."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Medians over rounds.

    Args:
        ttft_ms: Time to first token, in milliseconds.
        tokens_per_second: Of decoding, the first token left out; None if no second one was decoded.
        rounds: How many there were; 0 if these are the times of the answer itself.
    """

    ttft_ms: float
    tokens_per_second: float | None
    rounds: int


def measure(loaded: Loaded, inputs: Any, methods: list[Method], stop: threading.Event) -> tuple[Times, Times] | None:
    """Time the untouched model and one with methods; the answers given before have warmed both up.

    Args:
        loaded: Model and processor; nobody else may use the model meanwhile.
        inputs: As `vtprune.inputs.make_inputs` makes them.
        methods: Those whose gain is measured.
        stop: Once set, the round that is on its way ends, and does not count.

    Returns:
        Times without and with the methods; None if `stop` was set before there were any.
    """
    start = time.perf_counter()
    found: tuple[list[Answer], list[Answer]] = ([], [])
    for _ in range(ROUNDS):
        if stop.is_set() or (found[0] and time.perf_counter() - start > PATIENCE):
            break
        without = _time(loaded, inputs, stop)
        with vtprune.applied(loaded.model, methods):
            pruned = _time(loaded, inputs, stop)
        if not stop.is_set():  # else they were cut short
            found[0].append(without)
            found[1].append(pruned)
    return (_median(found[0]), _median(found[1])) if found[0] else None


def _time(loaded: Loaded, inputs: Any, stop: threading.Event) -> Answer:
    clock = Clock()
    settings: dict[str, Any] = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "do_sample": False}
    with torch.inference_mode():
        clock.start()
        loaded.model.generate(**inputs, **settings, streamer=clock, stopping_criteria=stop_at(stop))
    return clock.answer()


def _median(answers: list[Answer]) -> Times:
    return Times(
        statistics.median(one.ttft_ms for one in answers if one.ttft_ms is not None),
        statistics.median(one.tokens_per_second for one in answers if one.tokens_per_second is not None),
        len(answers),
    )
