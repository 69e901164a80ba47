"""TokenSelect: votes of all heads, and choices that are used again."""

from __future__ import annotations

import pytest
import torch

from tests.methods.inputs import INFO
from tests.methods.reading import HEADS, decoded, floats, layer_slots, read, split
from vtprune.methods import Place
from vtprune.methods.tokenselect import TokenSelect, alike, cast, elected, middle

ROWS = [(3, 12, 4), (2, 5, 1, 8, 6), (9,)]


def voted(slots, row, count, scale=1.0):
    """The most voted visual entries of a row, head by head."""
    visual = slots.visual_entries[row, 0].nonzero()[:, 0]
    votes = torch.zeros(len(visual))
    for head in range(HEADS):
        votes += (slots.keys[row, head // 2, visual] @ slots.queries[row, head, 0] * scale).softmax(0)
    return set(visual[votes.argsort(descending=True, stable=True)[:count]].tolist())


@pytest.mark.parametrize("scaled", [False, True])
def test_a_decoded_token_reads_what_heads_vote_for_and_all_text(scaled):
    method = TokenSelect(keep=4, reuse=None, scaled=scaled)
    slots = layer_slots(ROWS)
    assert method.decide(slots) is None
    for _ in range(3):
        slots = decoded(slots)
        decision = method.decide(slots)
        for row, text in ((0, 7), (1, 9), (2, 9)):
            (found,) = read(slots, decision, row)
            visual, other = split(slots, found, row)
            assert visual == voted(slots, row, 4, slots.scale if scaled else 1.0)
            assert len(other) == text + slots.keys.shape[2] - 22


def test_a_batch_reads_what_its_rows_read_alone():
    method, batch = TokenSelect(keep=0.3), layer_slots(ROWS)
    alone = [layer_slots(ROWS, alone=i) for i in range(3)]
    for step in range(4):
        queries = floats(3, HEADS, 8, seed=7 + step // 2)  # every second query is the one before it
        batch = decoded(batch, queries)
        alone = [decoded(x, queries[i : i + 1]) for i, x in enumerate(alone)]
        decision = method.decide(batch)
        for i, one in enumerate(alone):
            padding = batch.keys.shape[2] - one.keys.shape[2]
            assert read(batch, decision, i) == [{x + padding for x in read(one, method.decide(one))[0]}]


def test_a_choice_is_used_again_while_queries_point_the_same_way():
    method, slots = TokenSelect(keep=3, reuse=0.9), layer_slots([(3, 12, 4), (2, 9, 8)])
    first = floats(2, HEADS, 8, seed=1)
    turned = torch.stack((0.1 * first[0], -first[1]))  # a tenth would vote for others, but points the same way
    slots = decoded(slots, first)
    before = method.decide(slots)
    slots = decoded(slots, turned)
    assert voted(slots, 0, 3) != voted(slots, 1, 3)
    after = method.decide(slots)
    assert split(slots, read(slots, after)[0])[0] == split(slots, read(slots, before)[0])[0]
    assert split(slots, read(slots, after, 1)[0], 1)[0] == voted(slots, 1, 3)
    # The query that a choice is compared with is the one that made it.
    torch.testing.assert_close(slots.held["asked"][0], first[0])
    torch.testing.assert_close(slots.held["asked"][1], turned[1])
    assert alike(torch.ones(1, 2, 4), torch.ones(1, 2, 4) * 3, 1 - 1e-6).tolist() == [True]


def test_a_prompt_and_a_cropped_cache_forget_the_choice():
    method, prompt = TokenSelect(keep=3, reuse=-1.0), layer_slots([(3, 12, 4)])
    longer = decoded(decoded(prompt))
    method.decide(longer)
    assert set(longer.held) == {"counts", "chosen", "asked", "text"}
    method.decide(prompt)
    assert not prompt.held
    method.decide(longer)
    shorter = layer_slots([(3, 6, 0)])
    shorter.held.update(longer.held)
    slots = decoded(shorter)  # eight entries fewer than when it counted
    (found,) = read(slots, method.decide(slots))
    assert max(found) == 9
    assert len(split(slots, found)[0]) == 3


def test_first_and_last_entries_are_always_read():
    method, slots = TokenSelect(keep=7, first=2, last=3, reuse=None), decoded(layer_slots(ROWS))
    decision = method.decide(slots)
    for row in (0, 1):
        visual = slots.visual_entries[row, 0].nonzero()[:, 0].tolist()
        found = split(slots, read(slots, decision, row)[0], row)[0]
        assert len(found) == 7
        assert {*visual[:2], *visual[-3:]} <= found
    candidate = torch.ones(1, 6, dtype=torch.bool)
    few = elected(torch.ones(1, 6), candidate, torch.tensor([3]), 3, first=2, last=2)
    assert few[0].nonzero()[:, 0].tolist() == [0, 1, 4]
    assert middle(candidate, 2, 1)[0].nonzero()[:, 0].tolist() == [2, 3, 4]


def test_votes_of_the_other_mapping_go_to_other_heads():
    queries, keys = floats(1, 4, 8), floats(1, 2, 9, 8, seed=1)
    everything = torch.ones(1, 9, dtype=torch.bool)
    for heads, key_of in (("grouped", lambda h: h // 2), ("modulo", lambda h: h % 2)):
        expected = sum((keys[0, key_of(h)] @ queries[0, h]).softmax(0) for h in range(4))
        torch.testing.assert_close(cast(queries, keys, 1.0, everything, heads)[0], expected)


def test_nothing_is_chosen_where_everything_may_be_read():
    slots = decoded(layer_slots(ROWS))
    assert TokenSelect(keep=1.0).decide(slots) is None
    assert TokenSelect(keep=13).decide(slots) is None
    (stage,) = TokenSelect().stages(INFO)
    assert stage.decodes
    assert stage.place is Place.ATTENTION
    assert stage.layers == tuple(range(32))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"kernel": 4}, "odd number"), ({"first": -1}, ">= 0"), ({"reuse": 2}, "reuse"), ({"heads": "any"}, "one of")],
)
def test_refuses(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        TokenSelect(**wrong)
