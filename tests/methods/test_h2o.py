"""Heavy hitters: the rules of the specification, and the traps that it names."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import INFO, cache_entries
from vtprune.methods._entries import BLOCK, received, seen_by
from vtprune.methods.h2o import H2O, accumulated, heavy_and_recent, simulated_mask

CLOSE = dict(atol=1e-5, rtol=1e-5)


def by_hand(entries):
    """Attention received, query by query and head by head."""
    rows, heads, length = entries.keys.shape[:3]
    group = entries.queries.shape[1] // heads
    total = torch.zeros(rows, heads, length)
    for r in range(rows):
        for n in range(entries.query_at.shape[1]):
            at = int(entries.query_at[r, n])
            if entries.query_valid is not None and not entries.query_valid[r, n]:
                continue
            for h in range(entries.queries.shape[1]):
                seen = entries.valid[r].clone()
                seen[at + 1 :] = False
                logits = entries.keys[r, h // group] @ entries.queries[r, h, n] * entries.scale
                total[r, h // group] += logits.masked_fill(~seen, -torch.inf).softmax(0)
    return total


def test_received_equals_a_plain_loop():
    entries = cache_entries([(2, 12, 5), (9, 0, 3), (0, 6, 0)])
    torch.testing.assert_close(received(entries), by_hand(entries), **CLOSE)
    assert seen_by(entries)[1, 7:].tolist() == list(range(12, 0, -1))


def test_blocks_of_queries_are_joined():
    entries = cache_entries([(30, 2 * BLOCK, 9)])
    torch.testing.assert_close(received(entries), by_hand(entries), atol=1e-4, rtol=1e-4)


def test_the_recent_ones_stay_and_the_heaviest_of_the_others():
    score = torch.tensor([[[5.0, 1.0, 4.0, 4.0, 9.0, 9.0]]])
    candidate = torch.ones(1, 1, 6, dtype=torch.bool)
    mask = heavy_and_recent(score, candidate, torch.tensor([2]), torch.tensor([1]))
    assert mask.tolist() == [[[True, False, False, False, True, True]]]
    # Text between the candidates is no candidate, and a tie goes to the earlier one.
    candidate[..., 4] = False
    mask = heavy_and_recent(score, candidate, torch.tensor([2]), torch.tensor([1]))
    assert mask.tolist() == [[[True, False, True, False, False, True]]]


def test_scores_go_on_from_call_to_call():
    entries = cache_entries([(2, 6, 4)])
    first = accumulated(entries).clone()
    entries.memory["score_of_entries"] = torch.nn.functional.pad(first, (0, 1))
    longer = cache_entries([(2, 6, 5)], seed=1)
    step = dataclasses.replace(
        longer,
        queries=longer.queries[:, :, -1:],
        query_at=longer.query_at[:, -1:],
        query_valid=None,
        memory=entries.memory,
    )
    torch.testing.assert_close(accumulated(step), by_hand(step) + torch.nn.functional.pad(first, (0, 1)), **CLOSE)


def test_sums_favour_early_entries_and_means_do_not():
    """Of equal keys each query's share is the same, and the first entries are seen by most queries."""
    entries = cache_entries([(0, 40, 0)])
    equal = dataclasses.replace(entries, keys=torch.zeros_like(entries.keys))
    assert H2O(keep=10, queries="all").decide(equal).mask[0, 0].nonzero().flatten().tolist() == list(range(10))
    picked = H2O(keep=10, queries="all", mean=True).decide(dataclasses.replace(equal, memory={})).mask[0, 0]
    harmonic = (1 / torch.arange(1.0, 41)).flip(0).cumsum(0).flip(0) / torch.arange(40.0, 0, -1)
    assert torch.equal(picked, harmonic >= harmonic.topk(10).values[-1])


def test_the_share_of_recent_ones_is_rounded_down():
    entries = cache_entries([(0, 20, 0)], text=True)
    mask = H2O(keep=5, recent=0.5, text=True).decide(dataclasses.replace(entries, keys=entries.keys * 0)).mask
    assert mask[0, 1].nonzero().flatten().tolist() == [0, 1, 2, 18, 19]


def test_only_text_needs_steps():
    (visual,), (both,) = H2O().stages(INFO), H2O(text=True).stages(INFO)
    assert not visual.decodes
    assert both.decodes
    assert both.text
    assert visual.signals == {"closing_queries"}
    assert H2O(queries="all").stages(INFO)[0].signals == {"all_queries"}


def test_simulation_hides_the_slot_that_has_just_left_for_one_step():
    score = torch.tensor([[9.0, 1.0, 8.0, 7.0, 2.0, 3.0]])
    mask, left = simulated_mask(score, heavy=2, recent=2)
    # Of the coming token and the last one: two recent ones. Slot 4 is neither recent nor a candidate.
    assert mask.int().tolist() == [[1, 0, 1, 0, 0, 1, 1]]
    assert left.tolist() == [[9, 0, 8, 0, 2, 3]]


@pytest.mark.parametrize("wrong", [{"recent": 1.5}, {"recent": -0.1}, {"queries": "last"}])
def test_refuses(wrong):
    with pytest.raises(ValueError, match="must be"):
        H2O(**wrong)
