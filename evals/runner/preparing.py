"""From the questions of a batch to calls of the model: pictures are read, prompts written, failures told."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from PIL import Image

from vtprune.evals.data.prompts import asked
from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics import Metric
from vtprune.evals.runner.batches import Batch
from vtprune.inputs import Ask, make_batch
from vtprune.models import Loaded
from vtprune.videos import Video

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Call:
    """Questions that go through the model together.

    Args:
        indices: Their places in the question set.
        asks: What is asked.
        inputs: What the model is called with; None if it could not be made.
    """

    indices: tuple[int, ...]
    asks: tuple[Ask, ...]
    inputs: Any


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A batch, ready to be asked: its calls, and why some of its questions cannot be asked, by index."""

    batch: Batch
    calls: tuple[Call, ...]
    failures: dict[int, str]


def prepare(loaded: Loaded, samples: Sequence[Sample], metric: Metric, batch: Batch) -> Prepared:
    """Read what a batch is about; an error about one question leaves the others alone.

    Questions about videos that turn out to have different numbers of frames become calls of their own.
    """
    groups: dict[tuple[int, ...], dict[int, Ask]] = {}
    failures: dict[int, str] = {}
    for index in batch.indices:
        try:
            ask = _read(samples[index], metric)
        except Exception as error:
            failures[index] = describe(error)
        else:
            groups.setdefault(tuple(len(video.frames) for video in ask.videos), {})[index] = ask
    return Prepared(batch, tuple(_call(loaded, group) for group in groups.values()), failures)


def alone(loaded: Loaded, call: Call) -> list[Call]:
    """The same questions, each by itself."""
    return [_call(loaded, {index: ask}) for index, ask in zip(call.indices, call.asks, strict=True)]


def describe(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def ahead(function: Callable[[T], R], items: Iterable[T], threaded: bool) -> Iterator[R]:
    """`map`, one item ahead in a thread, so that a GPU need not wait for pictures to be read."""
    if not threaded:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: collections.deque[Future[R]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(sample: Sample, metric: Metric) -> Ask:
    images: list[Image.Image] = []
    videos: list[Video] = []
    for medium in sample.media:
        one = medium.load()
        if isinstance(one, Video):
            videos.append(one)
        else:
            images.append(one)
    return Ask(asked(sample, metric), images, videos)


def _call(loaded: Loaded, group: dict[int, Ask]) -> Call:
    asks = tuple(group.values())
    try:
        inputs = make_batch(loaded, asks)
    except Exception:
        inputs = None  # told when the call is made
    return Call(tuple(group), asks, inputs)
