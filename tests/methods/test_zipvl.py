"""zipvl: how many entries hold a share of the attention, and which ones stay."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from tests.methods.inputs import INFO, cache_entries
from vtprune.kernels import compact_index
from vtprune.methods import CacheEntries, Cells, Keep, LayerSlots, Place, Store, Where, build_method
from vtprune.methods._entries import received, seen_by
from vtprune.methods._probes import behind_first, shown_by
from vtprune.methods.zipvl import entries_for

ROWS = [(2, 40, 18), (9, 30, 3), (5, 0, 2)]


def masses(*values: float) -> torch.Tensor:
    return torch.tensor([values])


@pytest.mark.parametrize(
    ("tau", "count"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.82, 3), (0.99, 4), (1.0, 4), (1e-9, 1)]
)
def test_the_fewest_entries_that_hold_a_share(tau: float, count: int) -> None:
    mass = masses(0.0625, 0.5, 0.125, 0.3125)
    among = torch.ones(1, 4, dtype=torch.bool)
    assert entries_for(tau, mass, among).tolist() == [count]


def test_only_candidates_have_mass() -> None:
    """A sink outside would hold everything by itself; a row without candidates needs none."""
    mass = torch.tensor([[100.0, 3.0, 2.0, 1.0], [100.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    among = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    assert entries_for(0.8, mass, among).tolist() == [2, 1, 0]


def test_count_from_sums_and_identity_from_means() -> None:
    """Queries 4 and 9 of 10 entries: what stands late is seen by one of them only."""
    entries = cache_entries([(0, 10, 0)])
    at = torch.tensor([[4, 9]])
    entries = dataclasses.replace(entries, queries=entries.queries[:, :, at[0]], query_at=at, query_valid=None)
    mass = received(entries).sum(1)
    count = int(entries_for(0.7, mass, entries.candidate[:, 0]))
    mask = build_method("zipvl", {"tau": 0.7, "keep": 1.0}).decide(entries).mask
    assert mask.sum(2).tolist() == [[count, count]]
    means = mass / torch.tensor([2.0] * 5 + [1.0] * 5)
    assert torch.equal(seen_by(entries), torch.tensor([[2.0] * 5 + [1.0] * 5]))
    assert set(mask[0, 0].nonzero().squeeze(1).tolist()) == set(means[0].topk(count).indices.tolist())
    assert set(mask[0, 0].nonzero().squeeze(1).tolist()) != set(mass[0].topk(count).indices.tolist())


@pytest.mark.parametrize("queries", ["closing", "probes"])
def test_threshold_grows_and_the_budget_bounds_it(queries: str) -> None:
    batch = cache_entries(ROWS)
    counts = []
    for tau in (0.3, 0.6, 0.9, 1.0):
        decision = build_method("zipvl", {"tau": tau, "keep": 1.0, "queries": queries}).decide(batch)
        assert isinstance(decision, Keep)
        kept = (decision.mask & batch.candidate).sum(2)
        assert torch.equal(kept[:, 0], kept[:, 1])
        counts.append(kept[:, 0].tolist())
        bounded = build_method("zipvl", {"tau": tau, "keep": 5, "queries": queries}).decide(batch).mask
        assert (bounded & batch.candidate).sum(2)[:, 0].tolist() == [min(n, 5) for n in counts[-1]]
        for i, row in enumerate(ROWS):
            alone = build_method("zipvl", {"tau": tau, "keep": 1.0, "queries": queries})
            one = alone.decide(cache_entries(ROWS, alone=i)).mask
            assert torch.equal(decision.mask[i : i + 1, :, -sum(row) :], one)
    assert all(a <= b for one, other in itertools.pairwise(counts) for a, b in zip(one, other, strict=True))
    assert [n > 0 for n in counts[0]] == [True, True, False]
    assert counts[0] != counts[-2]


def test_probes_stand_behind_the_first_visual_entry() -> None:
    """Those before it see none of it, and would only take the place of others."""
    entries = cache_entries([(30, 5, 5)])
    assert behind_first(entries).nonzero()[:, 1].tolist() == list(range(30, 40))


def test_fewer_bits_in_the_place_of_leaving() -> None:
    batch = cache_entries(ROWS)
    kept = build_method("zipvl", {"tau": 0.6, "keep": 1.0}).decide(batch).mask
    stored = build_method("zipvl", {"tau": 0.6, "keep": 1.0, "bits": (4, 2)}).decide(batch)
    assert isinstance(stored, Store)
    assert torch.equal(stored.bits == 4, kept)
    assert torch.equal(stored.bits == 2, ~kept)


@pytest.mark.parametrize("bits", [None, (4, 2)])
def test_with_text_the_last_token_stays_as_it_is(bits: tuple[int, int] | None) -> None:
    decision = build_method("zipvl", {"keep": 1, "text": True, "bits": bits}).decide(cache_entries(ROWS, text=True))
    if bits is None:
        assert decision.mask[:, :, -1].all()
        assert decision.mask.sum(2).tolist() == [[1, 1]] * 3
    else:
        assert (decision.bits[:, :, -1] == 16).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tau": 0.0}, "tau must be a number"),
        ({"tau": 1.1}, "tau must be a number"),
        ({"bits": (2, 4)}, "the greater first"),
        ({"bits": (4, 4)}, "the greater first"),
        ({"bits": (4, 1)}, "must be"),
        ({"recent": 0}, "recent must be a whole number"),
        ({"sparse_prefill": True, "text": True}, "it needs text=False"),
        ({"sparse_prefill": True, "keep": 5}, "keep must be a ratio, got 5"),
    ],
)
def test_refusals(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("zipvl", parameters)


def slots_of(entries: CacheEntries, past: int, cells: torch.Tensor) -> LayerSlots:
    """The same as a stage at the attention sees it; `cells` (rows, slots) is -1 on newlines and text."""
    visual = entries.candidate[:, 0, past:]
    index, there = compact_index(visual)
    index = index if there is None else index.masked_fill(~there, -1)
    number = cells.gather(1, index.clamp_min(0)).masked_fill(index < 0, -1)
    heads = entries.queries.shape[1]
    where = Where(Cells(number, *[number] * 4), 1, index[:, :0])
    known = dict(where=where, queries=entries.queries, keys=entries.keys, values=entries.values, scale=entries.scale)
    shown = entries.candidate[:, :1], entries.valid
    return LayerSlots(entries.layer, past, heads, entries.keys.shape[1], index[:, :0], index, *shown, {}, {}, **known)


@pytest.mark.parametrize("parameters", [{"tau": 0.6, "keep": 1.0}, {"keep": 0.3}, {"tau": 0.9, "queries": "probes"}])
def test_the_sparse_prefill_attends_among_what_the_cache_keeps(parameters: dict) -> None:
    """And among text; rows with fewer have -1 in front."""
    batch = cache_entries(ROWS)
    method = build_method("zipvl", {"sparse_prefill": True, **parameters})
    shown = batch
    if method.queries == "closing":
        last = batch.candidate[:, 0].flip(1).cumsum(1).flip(1) == 0
        at, there = compact_index(last & batch.valid)
        shown = shown_by(batch, at, there)
    kept = batch.valid & (method.decide(shown).mask[:, 0] | ~batch.candidate[:, 0])
    (part,) = method.attend(slots_of(batch, 0, batch.candidate[:, 0].long() - 1)).parts
    assert torch.equal(part.slots, part.entries)
    for row, own in enumerate(kept):
        listed = part.slots[row, 0]
        assert listed[listed >= 0].tolist() == own.nonzero().squeeze(1).tolist()
        assert (listed < 0).tolist() == sorted((listed < 0).tolist(), reverse=True)


def test_newlines_and_the_last_token_stay_in_the_sparse_prefill() -> None:
    batch = cache_entries([(2, 12, 0)])
    cells = batch.candidate[:, 0].long() - 1
    cells[:, [5, 13]] = -1
    (part,) = build_method("zipvl", {"sparse_prefill": True, "keep": 0.1}).attend(slots_of(batch, 0, cells)).parts
    assert {0, 1, 5, 13} < set(part.slots.flatten().tolist())
    assert part.slots.numel() == 5
    nothing = cache_entries([(9, 0, 0)])
    assert build_method("zipvl", {"sparse_prefill": True}).attend(slots_of(nothing, 0, cells)) is None


def test_a_sparse_prefill_has_two_stages() -> None:
    found = build_method("zipvl", {"sparse_prefill": True}).stages(INFO)
    assert [stage.place for stage in found] == [Place.ATTENTION, Place.CACHE]
    assert len(build_method("zipvl", {}).stages(INFO)) == 1
