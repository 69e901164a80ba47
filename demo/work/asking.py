"""A question answered without and with methods, told while it is answered."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

from vtprune.demo.work.answering import Answer, stream_answer
from vtprune.demo.work.chosen import Chosen
from vtprune.demo.work.measuring import PATIENCE, Times, measure
from vtprune.demo.work.media import Question
from vtprune.demo.work.models import Models
from vtprune.models import Loaded
from vtprune.report import Report

_NOTHING = Answer()


@dataclasses.dataclass(frozen=True)
class Asked:
    """How far it has come.

    Args:
        unpruned: Answer of the untouched model.
        pruned: Answer with the methods.
        times: Without and with the methods; None until they are known.
        now: What is being done, in a few words; "" once there is nothing left to do.
        stopped: Whether it was stopped before its end.
    """

    unpruned: Answer = _NOTHING
    pruned: Answer = _NOTHING
    times: tuple[Times, Times] | None = None
    now: str = ""
    stopped: bool = False

    @property
    def report(self) -> Report | None:
        """What was saved, once that is known."""
        return self.pruned.report


def ask(
    models: Models, model: str, question: Question, chain: Chosen, new_tokens: int, stop: threading.Event
) -> Iterator[Asked]:
    """Ask without and with methods, one behind the other, then time both.

    A turn with the model is taken for each of the three.

    Args:
        models: The demo's.
        model: Name of one of them.
        question: What is asked.
        chain: The methods.
        new_tokens: Answers are cut off there.
        stop: Once set, the answer that is on its way ends, and nothing further begins.

    Yields:
        How far it has come.

    Raises:
        ValueError: Model, question and methods do not go together.
    """
    state = Asked(now="waiting for the model")
    yield state
    with models.lease(model) as loaded:
        if not stop.is_set():
            inputs = question.inputs(loaded, new_tokens)
            state = dataclasses.replace(state, now="answering without pruning")
            for answer in stream_answer(loaded, inputs, [], new_tokens, stop):
                state = dataclasses.replace(state, unpruned=answer)
                yield state
    if not stop.is_set():
        with models.lease(model) as loaded:
            state = dataclasses.replace(state, now="answering with pruning")
            for answer in stream_answer(loaded, inputs, chain.methods, new_tokens, stop):
                state = dataclasses.replace(state, pruned=answer)
                yield state
    if not stop.is_set():
        yield (state := dataclasses.replace(state, now="measuring"))
        state = dataclasses.replace(state, times=_times(models, model, inputs, chain, state, stop))
    yield dataclasses.replace(state, now="", stopped=stop.is_set())


def _times(
    models: Models, model: str, inputs: Any, chain: Chosen, state: Asked, stop: threading.Event
) -> tuple[Times, Times] | None:
    """Measured; or, where a model is too slow for that, the times of the answers."""
    answers = state.unpruned, state.pruned
    if sum((one.ttft_ms or 0) + one.decode_ms for one in answers) < 1000 * PATIENCE:
        with models.lease(model) as loaded:
            return measure(loaded, inputs, chain.methods, stop)
    without, pruned = (Times(one.ttft_ms or 0, one.tokens_per_second, 0) for one in answers)
    return without, pruned


def check_tokens(tokens: Any, limit: int) -> int:
    """A length of answers, checked.

    Raises:
        ValueError: It is no whole number, or out of range.
    """
    number = isinstance(tokens, int | float) and not isinstance(tokens, bool)
    if not number or not 1 <= tokens <= limit or tokens != int(tokens):
        raise ValueError(f"max_new_tokens must be a whole number from 1 to {limit}, got {tokens!r:.40}.")
    return int(tokens)


def select(loaded: Loaded, inputs: Any, chain: Chosen) -> Report:
    """Which tokens the methods keep: one prefill, and nothing decoded.

    Args:
        loaded: Model and processor; nobody else may use the model meanwhile.
        inputs: As `vtprune.inputs.make_inputs` makes them.
        chain: The methods.

    Raises:
        ValueError: The methods refuse the model.
    """
    import torch

    import vtprune

    with torch.inference_mode(), vtprune.applied(loaded.model, chain.methods):
        loaded.model(**inputs, use_cache=True, logits_to_keep=1)
        report = vtprune.report(loaded.model)
    if report is None:
        raise RuntimeError("the prompt reached the model without a picture or a clip.")
    return report
