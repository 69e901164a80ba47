"""zipcache: how salient entries are found, and how many bits they get."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from tests.methods.inputs import INFO, cache_entries
from vtprune.methods import build_method
from vtprune.methods._entries import received
from vtprune.methods._probes import mean_received, probe_rows, shown_by
from vtprune.methods.zipcache import mixed, salience

ROWS = [(2, 40, 18), (9, 30, 3)]


def all_true(rows: int, n: int) -> torch.Tensor:
    return torch.ones(rows, n, dtype=torch.bool)


@pytest.mark.parametrize("length", [1, 7, 19, 20, 60, 64, 577])
def test_probes_are_the_last_and_random_ones_before(length: int) -> None:
    """5 percent each, as the authors' code counts them: below 20 tokens one recent probe and no random one."""
    index, there = probe_rows(all_true(1, length), 0.05, 0.05, 0)
    first = int(length - 0.05 * length)
    chosen = index[there]
    recent = chosen[chosen >= first]
    assert sorted(recent.tolist()) == list(range(first, length))
    assert len(chosen) - len(recent) == int(0.05 * length)


def test_probes_of_a_padded_row_are_those_of_the_row_alone() -> None:
    valid = torch.arange(200) >= torch.tensor([0, 83, 137, 195, 200])[:, None]
    valid[1, 150] = False  # a gap
    index, there = probe_rows(valid, 0.05, 0.1, 7)
    for row, own in enumerate(valid):
        at = own.nonzero().squeeze(1)
        assert set(index[row, there[row]].tolist()) <= set(at.tolist())
        if len(at):
            alone, counted = probe_rows(all_true(1, len(at)), 0.05, 0.1, 7)
            assert index[row, there[row]].tolist() == at[alone[counted]].tolist()
        else:
            assert not there[row].any()


def test_probes_follow_the_seed_only() -> None:
    state = torch.random.get_rng_state()
    one, other, again = (probe_rows(all_true(1, 400), 0.05, 0.05, seed)[0] for seed in (0, 1, 0))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_numbers_of_probes() -> None:
    """As numbers: all queries of a short row, 3 recent and 4 drawn ones of a long one."""
    valid = torch.arange(40) >= torch.tensor([33, 0])[:, None]
    index, there = probe_rows(valid, 3, 4, 0)
    assert sorted(index[0, there[0]].tolist()) == list(range(33, 40))
    assert there[1].sum() == 7
    assert {37, 38, 39} <= set(index[1, there[1]].tolist())
    assert (index[1, there[1]] < 40).all()


def test_a_probe_that_is_drawn_twice_counts_twice() -> None:
    entries = cache_entries([(2, 8, 4)])
    ids = torch.tensor([[13, 5, 5]])
    sums = received(shown_by(entries, ids, torch.ones_like(ids, dtype=torch.bool)))
    single = [received(shown_by(entries, torch.tensor([[i]]), torch.ones(1, 1, dtype=torch.bool))) for i in (13, 5)]
    torch.testing.assert_close(sums, single[0] + 2 * single[1])


def test_divisors() -> None:
    """Probes 3, 5 and 9 of 10: entry 4 is seen by two of them, and has six entries from itself on."""
    entries = cache_entries([(0, 10, 0)])
    ids = torch.tensor([[3, 5, 9]])
    entries = shown_by(entries, ids, torch.ones_like(ids, dtype=torch.bool))
    sums = received(entries)
    torch.testing.assert_close(mean_received(entries)[..., 4], sums[..., 4] / 2)
    closing = build_method("zipcache", {"divisor": "length"})
    torch.testing.assert_close(salience(entries, closing)[..., 4], sums[..., 4] / 6)


def test_where_all_probes_see_everything_no_divisor_matters() -> None:
    entries = cache_entries([(3, 20, 6)])
    late = torch.arange(23, 29)[None]
    entries = shown_by(entries, late, torch.ones_like(late, dtype=torch.bool))
    sums, means = received(entries), mean_received(entries)
    assert torch.equal(sums[..., 3:23].argsort(2), means[..., 3:23].argsort(2))


@pytest.mark.parametrize(
    ("share", "counts"),
    [
        (0.2, {4: 60, 2: 40}),  # the paper's
        (0.25, {4: 100}),
        (0.125, {2: 100}),
        (0.05, {2: 100}),  # no fewer than 2 bits
        (0.1375, {4: 10, 2: 90}),
        (0.5, {16: 34, 4: 66}),
        (1.0, {16: 100}),
    ],
)
def test_a_share_of_memory_as_bits(share: float, counts: dict[int, int]) -> None:
    scores = torch.rand(1, 2, 120, generator=torch.Generator().manual_seed(0))
    among = (torch.arange(120) >= 20).expand(1, 2, -1)
    bits = mixed(scores, among, torch.tensor([share]), (4, 2))
    for head in range(2):
        assert {w: int((bits[0, head] == w).sum()) for w in (2, 4, 16) if (bits[0, head] == w).any()} == counts
        by_bits = [scores[0, head][bits[0, head] == width] for width in sorted(counts)]
        assert all(low.max() < high.min() for low, high in itertools.pairwise(by_bits))
    assert not bits[~among].any()


def test_of_equal_scores_the_earlier_gets_more_bits() -> None:
    bits = mixed(torch.zeros(1, 1, 5), torch.ones(1, 1, 5, dtype=torch.bool), torch.tensor([0.2]), (4, 2))
    assert bits.tolist() == [[[4, 4, 4, 2, 2]]]


@pytest.mark.parametrize("queries", ["closing", "probes"])
def test_rows_alone_and_numbers_of_entries(queries: str) -> None:
    method = build_method("zipcache", {"keep": 8, "queries": queries})
    batch = cache_entries(ROWS)
    bits = method.decide(batch).bits
    for i, row in enumerate(ROWS):
        alone = method.decide(cache_entries(ROWS, alone=i)).bits
        assert torch.equal(bits[i : i + 1, :, -alone.shape[2] :], alone)
        # As much memory as 8 entries take, in whole entries of 16 and 4, or 4 and 2 bits.
        assert 0 <= bits[i, 0].sum() - max(8 * 16, 2 * row[1]) < (12 if 4 * row[1] < 8 * 16 else 2)


def test_what_has_bits_keeps_them() -> None:
    method = build_method("zipcache", {"text": True, "again": True})
    entries = cache_entries([(2, 12, 6)], text=True)
    first = method.decide(entries)
    assert first.again
    assert torch.equal(entries.memory["bits_of_entries"], first.bits)
    grown = cache_entries([(2, 12, 9)], text=True)
    memory = {"bits_of_entries": torch.nn.functional.pad(first.bits, (0, 3))}
    second = method.decide(dataclasses.replace(grown, memory=memory)).bits
    assert torch.equal(second[..., :20], first.bits)
    assert second[0, 0, 20:].sort().values.tolist() == [2, 4, 4]


def test_stages() -> None:
    (stage,) = build_method("zipcache", {}).stages(INFO)
    assert (stage.text, stage.decodes, stage.signals) == (False, False, {"closing_queries"})
    (stage,) = build_method("zipcache", {"text": True, "queries": "probes", "period": 50}).stages(INFO)
    assert (stage.text, stage.decodes, stage.every, stage.signals) == (True, True, 50, {"all_queries"})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bits": (4, 3)}, "bits must be two of"),
        ({"bits": (2, 4)}, "the greater first"),
        ({"queries": "all"}, "queries must be one of"),
        ({"recent": 1.5}, "recent must be a number"),
        ({"period": 0}, "period must be a whole number"),
        ({"again": True}, "it needs text=True"),
    ],
)
def test_refusals(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("zipcache", parameters)
