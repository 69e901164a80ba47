"""A2SF: forgetting, over queries and over calls."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import INFO, cache_entries
from vtprune.methods._entries import age, counted, received
from vtprune.methods.a2sf import A2SF, faded
from vtprune.methods.h2o import H2O

ROWS = [(2, 12, 5), (9, 0, 3)]
CLOSE = dict(atol=1e-5, rtol=1e-5)


def test_weights_fall_from_the_last_query_that_counts():
    entries = cache_entries(ROWS)
    weights = 0.5 ** age(counted(entries)).float()
    torch.testing.assert_close(faded(cache_entries(ROWS), 0.5), received(entries, weights), **CLOSE)
    assert (weights * counted(entries)).sum(1).allclose(torch.tensor([2.0, 2.0]), atol=1e-3)


def test_without_forgetting_it_is_h2o_over_all_queries():
    mask = A2SF(keep=5, forgetting=1.0).decide(cache_entries(ROWS)).mask
    assert torch.equal(mask, H2O(keep=5, queries="all").decide(cache_entries(ROWS)).mask)


def test_calls_one_by_one_equal_one_call():
    """A prompt in two parts, without an eviction, gives the scores that it gives in one."""
    whole = cache_entries([(0, 20, 0)])
    expected = faded(whole, 0.8)
    memory, score = {}, None
    for start, end in ((0, 13), (13, 19), (19, 20)):
        if memory:
            memory["score_of_entries"] = torch.nn.functional.pad(score, (0, end - start))
        part = dataclasses.replace(
            whole,
            queries=whole.queries[:, :, start:end],
            query_at=whole.query_at[:, start:end],
            query_valid=None,
            keys=whole.keys[:, :, :end],
            valid=whole.valid[:, :end],
            memory=memory,
        )
        score = faded(part, 0.8)
    torch.testing.assert_close(score, expected, **CLOSE)


def test_a_total_below_the_recent_ones_keeps_these():
    entries = cache_entries([(0, 20, 0)], text=True)
    mask = A2SF(keep=2, recent=1.0, text=True).decide(entries).mask
    assert mask[0, 0].nonzero().flatten().tolist() == [18, 19]


def test_stages():
    assert [A2SF(text=True, decodes=x).stages(INFO)[0].decodes for x in (False, True)] == [False, True]
    with pytest.raises(ValueError, match="needs text=True"):
        A2SF(decodes=True)
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="forgetting must be"):
            A2SF(forgetting=wrong)
