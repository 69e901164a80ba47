"""Frequency chunks, and the strongest entries of long rows."""

from __future__ import annotations

import pytest
import torch

from vtprune.compat import rotate
from vtprune.methods._chunks import agreement, chunk_logits, dimensions, dominant, importance, of_chunks
from vtprune.methods._select import top_k_mask
from vtprune.methods._strongest import index_of, strongest


def floats(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scores", [floats(6, 40), floats(6, 40).mul(2).round(), torch.zeros(6, 40)])
def test_strongest_marks_what_sorting_would(scores):
    among = floats(6, 40, seed=1) > -1
    scores[0, :7], scores[1, 3:9] = torch.nan, -torch.inf
    counts = torch.tensor([0, 1, 5, 17, 20, 40]).clamp_max(among.sum(1))
    mask = strongest(scores, counts, among, 40)
    assert torch.equal(mask, top_k_mask(scores, counts, among))
    index, valid = index_of(mask, 40)
    for row in range(6):
        assert torch.equal(index[row][valid[row]], mask[row].nonzero().squeeze(1))


def test_strongest_never_marks_what_may_not_be_marked():
    among = torch.tensor([[True, False, True, False]])
    mask = strongest(torch.tensor([[-torch.inf, 9.0, torch.nan, 9.0]]), torch.tensor([4]), among, 4)
    assert torch.equal(mask, among)
    assert not strongest(torch.ones(1, 4), torch.tensor([0]), among, 0).any()


def test_logits_are_sums_over_chunks():
    queries, keys = floats(2, 4, 3, 8), floats(2, 2, 9, 8, seed=1)
    whole = torch.einsum("rhqd,rhkd->rhqk", queries, keys.repeat_interleave(2, 1))
    torch.testing.assert_close(sum(chunk_logits(queries, keys, i) for i in range(4)), whole, atol=1e-5, rtol=1e-5)
    chunks = torch.tensor([[[0, 3], [1, 2]]])
    part = of_chunks(queries, chunks) @ of_chunks(keys, chunks).repeat_interleave(2, 1).transpose(2, 3)
    first = chunk_logits(queries, keys, 0) + chunk_logits(queries, keys, 3)
    torch.testing.assert_close(part[:, :2], first[:, :2], atol=1e-5, rtol=1e-5)
    assert dimensions(torch.tensor([0, 3]), 8).tolist() == [0, 3, 4, 7]


def test_halves_are_paired_not_neighbours():
    """A chunk's contribution depends on the distance of positions only, which it would not if pairs were wrong."""
    query, key = floats(1, 1, 1, 8), floats(1, 1, 1, 8, seed=1)
    turn = 100.0 ** -(torch.arange(4) / 4).repeat(2)

    def at(x, position):
        return rotate(x, (position * turn).cos().expand(1, 1, 8), (position * turn).sin().expand(1, 1, 8))

    for chunk in range(4):
        near, far = (chunk_logits(at(query, p + 3), at(key, p), chunk) for p in (0, 40))
        torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)
    neighbours = [(at(query, p + 3) * at(key, p))[..., :2].sum() for p in (0, 40)]
    assert (neighbours[0] - neighbours[1]).abs() > 1e-2


def test_agreement_by_hand():
    """Chunk 1 decides the logits: it agrees with them always, chunk 0 with what happens to be the same."""
    queries = torch.tensor([[[[1.0, 9.0, 0.0, 0.0]]]])
    keys = torch.zeros(1, 1, 6, 4)
    keys[..., 1] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    keys[..., 0] = torch.tensor([0.0, 5.0, 0.0, 4.0, 0.0, 9.0])
    everything = torch.ones(1, 1, 6, dtype=torch.bool)
    assert agreement(queries, keys, everything, torch.tensor([2]), 2).tolist() == [[[0.5, 1.0]]]
    everything[..., -1] = False  # without the entry on which chunk 0 insists
    assert agreement(queries, keys, everything, torch.tensor([2]), 2).tolist() == [[[0.5, 1.0]]]
    torch.testing.assert_close(agreement(queries, keys, everything, torch.tensor([3]), 3), torch.tensor([[[2 / 3, 1]]]))
    assert agreement(queries, keys, everything & False, torch.tensor([2]), 2).tolist() == [[[0.0, 0.0]]]


def test_agreement_of_groups_and_queries_is_a_mean():
    queries, keys = floats(2, 4, 5, 8), floats(2, 2, 12, 8, seed=3)
    among = torch.ones(2, 5, 12, dtype=torch.bool).tril(7)
    counts = torch.tensor([3, 4])
    expected = torch.zeros(2, 2, 4)
    for row in range(2):
        for head in range(4):
            for query in range(5):
                seen = among[row, query].nonzero().squeeze(1)
                key = keys[row, head // 2, seen]
                whole = set((key @ queries[row, head, query]).topk(int(counts[row])).indices.tolist())
                for chunk in range(4):
                    logit = key[:, [chunk, chunk + 4]] @ queries[row, head, query, [chunk, chunk + 4]]
                    part = set(logit.topk(int(counts[row])).indices.tolist())
                    expected[row, head // 2, chunk] += len(part & whole) / int(counts[row]) / 10
    torch.testing.assert_close(agreement(queries, keys, among, counts, 4), expected)


def test_dominant_chunks_are_sorted_and_ties_go_to_the_lower():
    assert dominant(torch.tensor([[0.1, 0.7, 0.7, 0.2], [0.5, 0.5, 0.5, 0.5]]), 2).tolist() == [[1, 2], [0, 1]]


def test_importance_of_all_chunks_is_attention():
    queries, keys = floats(1, 4, 3, 8), floats(1, 2, 9, 8, seed=1)
    among = torch.ones(1, 3, 9, dtype=torch.bool).tril(6)
    logits = torch.einsum("rhqd,rhkd->rhqk", queries, keys.repeat_interleave(2, 1)) * 0.3
    expected = logits.masked_fill(~among[:, None], -torch.inf).softmax(-1).sum(2).unflatten(1, (2, 2)).sum(2)
    torch.testing.assert_close(importance(queries, keys, 0.3, among), expected)
    plain = logits.masked_fill(~among[:, None], 0).sum(2).unflatten(1, (2, 2)).sum(2)
    torch.testing.assert_close(importance(queries, keys, 0.3, among, sharpen=False), plain)
