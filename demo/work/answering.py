"""An answer as it comes: its text so far, and when its tokens came."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

import vtprune
from vtprune.methods import Method
from vtprune.models import Loaded
from vtprune.report import Report


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer, or what there is of it yet.

    Args:
        text: Without special tokens.
        tokens: How many there are, the end's included.
        ttft_ms: Time to the first token in milliseconds; None before it.
        decode_ms: From the first to the last token.
        report: What was saved; None without methods, and before the first token.
        done: Whether nothing more follows.
    """

    text: str = ""
    tokens: int = 0
    ttft_ms: float | None = None
    decode_ms: float = 0.0
    report: Report | None = None
    done: bool = False

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding, the first token left out; None if there is no second one."""
        return 1000 * (self.tokens - 1) / self.decode_ms if self.tokens > 1 and self.decode_ms > 0 else None


def stream_answer(
    loaded: Loaded, inputs: Any, methods: list[Method], new_tokens: int, stop: threading.Event
) -> Iterator[Answer]:
    """Answer greedily, and say so word by word.

    The model runs on a thread of its own, which has ended when this has: whether it is used up, closed or fails.

    Args:
        loaded: Model and processor; nobody else may use the model meanwhile.
        inputs: As `vtprune.inputs.make_inputs` makes them.
        methods: Applied for this answer; none for the untouched model.
        new_tokens: The answer is cut off there.
        stop: Once set, the answer ends with the next token.

    Yields:
        The answer so far; the last one has `done` set.

    Raises:
        ValueError: As `vtprune.apply`.
    """
    streamer = _Streamer(loaded.processor.tokenizer)
    closed = threading.Event()
    outcome: list[BaseException | Report | None] = []
    work = loaded, inputs, methods, new_tokens, [stop, closed], streamer, outcome
    worker = threading.Thread(target=_generate, args=work, name="vtprune-answer", daemon=True)
    worker.start()
    text = ""
    try:
        for piece in streamer:
            text += piece
            yield streamer.answer(text)
    finally:
        closed.set()
        worker.join()
    (ended,) = outcome
    if isinstance(ended, BaseException):
        raise ended
    yield dataclasses.replace(streamer.answer(text.strip()), report=ended, done=True)


def _generate(
    loaded: Loaded,
    inputs: Any,
    methods: list[Method],
    new_tokens: int,
    stops: list[threading.Event],
    streamer: _Streamer,
    outcome: list[BaseException | Report | None],
) -> None:
    settings: dict[str, Any] = {
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "streamer": streamer,
        "stopping_criteria": stop_at(*stops),
    }
    try:
        with torch.inference_mode():
            streamer.start()
            if methods:
                with vtprune.applied(loaded.model, methods):
                    loaded.model.generate(**inputs, **settings)
                    outcome.append(vtprune.report(loaded.model))
            else:
                loaded.model.generate(**inputs, **settings)
                outcome.append(None)
    except BaseException as error:  # raised again by whom it concerns
        outcome.append(error)
        streamer.end()


def stop_at(*events: threading.Event) -> StoppingCriteriaList:
    """For `generate`'s `stopping_criteria`: the next token is the last one once any of the events is set."""
    return StoppingCriteriaList([_Stopped(events)])


class _Stopped(StoppingCriteria):
    def __init__(self, events: Sequence[threading.Event]) -> None:
        self.events = events

    def __call__(self, input_ids: Tensor, scores: Any, **settings: Any) -> Tensor:
        stopped = any(event.is_set() for event in self.events)
        return torch.full((input_ids.shape[0],), stopped, dtype=torch.bool, device=input_ids.device)


class Clock:
    """Notes when tokens come; as a `streamer` of `generate`, which hands it tokens on the CPU, computed."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.times: list[float] = []
        self._prompt_seen = False

    def start(self) -> None:
        """Count from now."""
        self.begun = time.perf_counter()

    def put(self, value: Tensor) -> None:
        """Called by `generate` with the prompt, and then with every token."""
        if self._prompt_seen:
            self.times.append(time.perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        """Called by `generate` in the end."""

    def answer(self, text: str = "") -> Answer:
        """What is known so far."""
        times = list(self.times)
        if not times:
            return Answer(text)
        return Answer(text, len(times), 1000 * (times[0] - self.begun), 1000 * (times[-1] - times[0]))


class _Streamer(TextIteratorStreamer):
    """The text as it comes, and a clock."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.clock = Clock()
        self.start, self.answer = self.clock.start, self.clock.answer

    def put(self, value: Tensor) -> None:
        self.clock.put(value)
        super().put(value)
