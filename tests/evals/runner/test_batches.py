"""Batches hold every question once, and the same ones whatever is done with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtprune.evals.data.sample import Medium, Sample
from vtprune.evals.runner.batches import make_batches, share_of


def sample(number, frames):
    """About a picture (0), a video of so many frames, or one that nobody has counted (None)."""
    kind = "image" if frames == 0 else "video"
    return Sample(str(number), "x?", (Medium(f"m{number}", kind, lambda: None, frames or None),))


@given(st.lists(st.sampled_from([0, 4, 8, None]), max_size=40), st.integers(1, 9), st.integers(1, 6))
def test_every_question_once(lengths, size, processes):
    samples = [sample(number, frames) for number, frames in enumerate(lengths)]
    batches = make_batches(samples, size)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(samples)))
    assert [batch.number for batch in batches] == list(range(len(batches)))
    for batch in batches:
        assert 1 <= len(batch.indices) <= size
        assert len({lengths[index] for index in batch.indices}) == 1
        assert list(batch.indices) == sorted(batch.indices)
    shares = [share_of(batches, rank, processes) for rank in range(processes)]
    assert sorted((batch for share in shares for batch in share), key=lambda batch: batch.number) == batches
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_full_batches_in_order():
    batches = make_batches([sample(number, 0) for number in range(7)], 3)
    assert [batch.indices for batch in batches] == [(0, 1, 2), (3, 4, 5), (6,)]
    with pytest.raises(ValueError, match="batch_size must be a whole number >= 1, got 0"):
        make_batches([], 0)
