"""Which questions are asked together: the same ones whatever was done before, and however many processes work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vtprune.evals.data.sample import Sample


@dataclasses.dataclass(frozen=True)
class Batch:
    """Questions that go into one call of the model.

    Args:
        number: Place of the batch.
        indices: Places of its questions in the question set, ascending.
    """

    number: int
    indices: tuple[int, ...]


def make_batches(samples: Sequence[Sample], size: int) -> list[Batch]:
    """Batches in the order of their first questions.

    Together are questions about pictures, or about videos of as many frames, as few processors take different numbers;
    videos of which nobody knows it yet are told apart when they are read (`vtprune.evals.runner.preparing`).

    Args:
        samples: The questions.
        size: At most so many in a batch.

    Raises:
        ValueError: `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"batch_size must be a whole number >= 1, got {size!r}.")
    groups: dict[object, list[list[int]]] = {}
    for index, sample in enumerate(samples):
        videos = [medium for medium in sample.media if medium.kind == "video"]
        shape = len(videos) < len(sample.media), tuple(medium.frames for medium in videos)
        open_batches = groups.setdefault(shape, [])
        if not open_batches or len(open_batches[-1]) == size:
            open_batches.append([])
        open_batches[-1].append(index)
    found = sorted(indices for batches in groups.values() for indices in batches)
    return [Batch(number, tuple(indices)) for number, indices in enumerate(found)]


def share_of(batches: Sequence[Batch], rank: int, processes: int) -> list[Batch]:
    """The batches of one process out of several: every so many-th, so that all have work to the end."""
    return [batch for place, batch in enumerate(batches) if place % processes == rank]
