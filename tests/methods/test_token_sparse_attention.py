"""Token Sparse Attention: which tokens heads leave out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO
from tests.methods.reading import HEADS, decoded, layer_slots
from vtprune.calibration import stable_layers
from vtprune.methods.token_sparse_attention import TokenSparseAttention, drift, droppable, stable

ROWS = [(3, 12, 4), (2, 5, 1, 8, 6), (9,)]


def kept(decision, row):
    """Slots that each head keeps of a row."""
    (part,) = decision.parts
    return [{x for x in head if x >= 0} for head in part.slots[row].tolist()]


def attention(slots, row, head, queries):
    """Attention of some slots to all that stand before them, mean over these."""
    past, rows = slots.past, []
    for i in queries:
        logits = slots.keys[row, head // 2] @ slots.queries[row, head, i] * slots.scale
        seen = torch.arange(len(logits)) <= past + i
        seen &= slots.valid[row] if slots.valid is not None else True
        rows.append(logits.masked_fill(~seen, -torch.inf).softmax(0))
    return torch.stack(rows).mean(0)


@pytest.mark.parametrize(("window", "closing"), [(128, (4, 6)), (2, (2, 2))])
def test_heads_keep_what_the_end_of_the_prompt_attends_to_and_all_text(window, closing):
    slots = layer_slots(ROWS)
    decision = TokenSparseAttention(keep=4, window=window, kernel=1).decide(slots)
    for row in (0, 1):
        visual = slots.visual_entries[row, 0].nonzero()[:, 0]
        for head, found in enumerate(kept(decision, row)):
            score = attention(slots, row, head, range(22 - closing[row], 22))[visual]
            expected = set(visual[score.argsort(descending=True)[:4]].tolist())
            assert found & set(visual.tolist()) == expected
            assert found - expected == set((slots.valid[row] & ~slots.visual_entries[row, 0]).nonzero()[:, 0].tolist())
    assert kept(decision, 2) == [set(range(13, 22))] * HEADS


def test_a_batch_keeps_what_its_rows_keep_alone():
    method, batch = TokenSparseAttention(keep=0.4, coverage=0.3, kernel=3), layer_slots(ROWS)
    for i, row in enumerate(ROWS):
        one = layer_slots(ROWS, alone=i)
        assert one.valid is None
        alone, padding = method.decide(one), 22 - sum(row)
        expected = [set(range(padding, 22))] * HEADS
        if alone is not None:
            assert alone.parts[0].entries is alone.parts[0].slots
            assert not alone.parts[0].padded
            expected = [{x + padding for x in head} for head in kept(alone, 0)]
        assert kept(method.decide(batch), i) == expected


def test_without_text_behind_the_picture_the_last_token_decides():
    slots = layer_slots([(4, 10)])
    decision = TokenSparseAttention(keep=3, kernel=1).decide(slots)
    for head, found in enumerate(kept(decision, 0)):
        score = attention(slots, 0, head, [13])[4:]
        assert {x - 4 for x in found if x >= 4} == set(score.topk(3).indices.tolist())


def test_coverage_is_the_attention_that_may_be_lost():
    scores = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 9.0]], [[1.0, 2.0, 3.0, 4.0, 9.0]]])
    candidate = torch.tensor([[True] * 4 + [False], [True, True, False, False, False]])
    assert droppable(scores, candidate, 0.0).tolist() == [0, 0]
    assert droppable(scores, candidate, 0.05).tolist() == [0, 0]  # the smallest one alone has more
    assert droppable(scores, candidate, 0.15).tolist() == [2, 0]  # one fits, and one more goes
    assert droppable(scores, candidate, 0.5).tolist() == [3, 2]
    assert droppable(scores, candidate, 1.0).tolist() == [4, 2]
    twice = torch.cat((scores, torch.full_like(scores, 2.5)), 1)  # heads decide together
    assert droppable(twice, candidate, 0.15).tolist() == [0, 0]


def test_a_floor_and_a_share():
    slots = layer_slots([(3, 12, 4)])
    for keep, coverage, left in ((5, 1.0, 5), (0.5, 1.0, 6), (11, 1e-9, None), (12, 1.0, None), (5, 0.0, None)):
        decision = TokenSparseAttention(keep=keep, coverage=coverage).decide(slots)
        assert decision is None if left is None else len(kept(decision, 0)[0]) == 7 + left


def test_with_text_the_window_stays():
    slots = layer_slots([(3, 12, 4)])
    decision = TokenSparseAttention(keep=5, window=2, kernel=1, text=True).decide(slots)
    for head, found in enumerate(kept(decision, 0)):
        score = attention(slots, 0, head, [17, 18])[:17]
        assert found == {17, 18} | set(score.topk(5).indices.tolist())


def test_scores_are_smoothed_within_a_picture():
    slots = layer_slots([(2, 6, 0, 6, 3)])
    keys = torch.zeros_like(slots.keys)
    keys[:, :, 7] = 50 * slots.queries[:, ::2, -1] / slots.queries[:, ::2, -1].norm(dim=-1, keepdim=True)
    decision = TokenSparseAttention(keep=3, window=1, kernel=5).decide(dataclasses.replace(slots, keys=keys))
    assert {5, 6, 7} <= kept(decision, 0)[0]
    assert 8 not in kept(decision, 0)[0]


def test_later_turns_see_what_was_there():
    slots = layer_slots([(3, 12, 4), (2, 9, 4)])
    past = layer_slots([(4, 2, 0), (6,)])
    later = dataclasses.replace(
        slots,
        past=6,
        visual_entries=torch.cat((past.visual_entries, slots.visual_entries), 2),
        valid=torch.cat((torch.tensor([[False, *[True] * 5], [True] * 6]), slots.valid), 1),
        keys=torch.cat((past.keys, slots.keys), 2),
        values=torch.cat((past.values, slots.values), 2),
    )
    (part,) = TokenSparseAttention(keep=4).decide(later).parts
    assert part.padded
    for row, earlier in ((0, {1, 2, 3, 4, 5}), (1, set(range(6)))):
        for own, entries in zip(part.slots[row].tolist(), part.entries[row].tolist(), strict=True):
            assert {x for x in entries if x >= 0} == earlier | {x + 6 for x in own if x >= 0}
            assert entries == sorted(entries)
    assert TokenSparseAttention(keep=4).decide(decoded(slots)) is None


def test_stable_layers_drift_least():
    states = torch.zeros(5, 3, 2)
    states[:, :, 0] = torch.tensor([1.0, 2.0, 2.2, 3.3, 3.4])[:, None]
    drifts = drift(states[:-1], states[1:]).mean(1)
    torch.testing.assert_close(drifts, torch.tensor([1.0, 0.1, 0.5, 0.1 / 3.3]))
    assert stable(drifts) == (1, 3)
    assert stable(drifts, 0.0) == (3,)
    assert stable(drifts, 1.0) == (0, 1, 2, 3)
    assert stable(torch.ones(4), 0.0) == (0, 1, 2, 3)


def test_acts_in_the_second_half_or_where_it_is_told():
    assert TokenSparseAttention().stages(INFO)[0].layers == tuple(range(16, 32))
    assert TokenSparseAttention(layers=[3, 5]).stages(INFO)[0].layers == (3, 5)
    with pytest.raises(ValueError, match="layers must be a layer"):
        TokenSparseAttention(layers=(32,)).stages(INFO)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"kernel": 4}, "odd number"), ({"window": 0}, ">= 1"), ({"coverage": 1.1}, "coverage")]
)
def test_refuses(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        TokenSparseAttention(**wrong)


@torch.no_grad()
def test_calibration_finds_the_stable_layers():
    family = FAMILIES["qwen3_vl"]  # DeepStack adds to hidden states between layers, which is no drift of theirs
    model = family.model()
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(9, seed=2), family.row(2, IMAGE, 3, seed=3)]
    found = [[] for _ in range(5)]

    def note(layer):
        def hook(module, args, output):
            found[layer].append(drift(args[0][0], (output[0] if isinstance(output, tuple) else output)[0]))

        return hook

    handles = [x.register_forward_hook(note(i)) for i, x in enumerate(model.model.language_model.layers)]
    for row in rows:
        model(**family.inputs(row))
    for handle in handles:
        handle.remove()
    means = torch.stack([torch.cat(x).mean() for x in found])
    batches = [family.inputs(*rows[:2]), family.inputs(rows[2])]
    for share in (0.0, 0.3, 0.5):
        assert stable_layers(model, batches, share=share) == stable(means, share)
    layers = stable_layers(model, batches)
    with vtprune.applied(model, "token_sparse_attention", layers=layers):
        model(**batches[0])
    with pytest.raises(ValueError, match="batches must hold prompts"):
        stable_layers(model, [])
