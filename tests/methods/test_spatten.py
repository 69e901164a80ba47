"""The cascade from layer to layer and from step to step, and room for further turns."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import vtprune
from tests.asking import check_padding_and_beams
from tests.engine.test_cache_methods import Noted
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO, cache_entries
from tests.methods.reading import decoded, layer_slots
from vtprune.engine.parts import attend
from vtprune.methods._entries import received
from vtprune.methods.base import Place
from vtprune.methods.spatten import SpAtten, logits, with_room

ROWS = [(2, 12, 5), (0, 9, 3)]
SMALL = dataclasses.replace(INFO, decoder_layers=6)


def run(method, entries):
    """All layers one after the other: what each keeps."""
    (stage,) = method.stages(SMALL)
    across, memory, kept = {}, {}, []
    for layer in stage.layers:
        shown = dataclasses.replace(entries[layer], layer=layer, across=across, memory=memory.setdefault(layer, {}))
        kept.append(stage.decide(shown).mask & shown.candidate)
    return kept


def test_the_cascade_by_hand():
    """Importance adds up over layers; of what is still there the most important stay, fewer from layer to layer."""
    entries = [cache_entries(ROWS, seed=layer) for layer in range(6)]
    kept = run(SpAtten(keep=3), entries)
    for r, (_, visual, _) in enumerate(ROWS):
        alive = entries[0].candidate[r, 0].nonzero().flatten().tolist()
        total = torch.zeros(entries[0].keys.shape[2])
        for layer in range(6):
            total += received(entries[layer])[r].sum(0)
            if layer:  # of six layers one keeps everything
                left = round(visual - (visual - 3) * layer / 5)
                alive = sorted(sorted(alive, key=lambda i, total=total: -total[i])[:left])
            for head in range(2):
                assert kept[layer][r, head].nonzero().flatten().tolist() == alive
        assert len(alive) == 3


def test_budgets_of_layers_may_be_given():
    entries = [cache_entries(ROWS, seed=layer) for layer in range(6)]
    kept = run(SpAtten(keep=(1.0, 9, 9, 0.5, 4, 1)), entries)
    assert [x[0, 0].sum().item() for x in kept] == [12, 9, 9, 6, 4, 1]
    assert all((later <= before).all() for before, later in itertools.pairwise(kept))
    # A later layer that may keep more than one before it keeps what is there.
    assert [x[0, 0].sum().item() for x in run(SpAtten(keep=(4, 12, 12, 12, 12, 12)), entries)] == [4] * 6


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "qwen2_5_vl"])
@pytest.mark.parametrize("text", [False, True])
def test_in_a_model_later_layers_hold_a_part_of_what_earlier_ones_do(name, text):
    """Step by step, too, also where another method dropped slots between the layers before."""
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 7), family.row(2, IMAGE, 3, IMAGE, 4, seed=1)]
    for chain in ([], ["fastv:layer=2,keep=0.7"]):
        method = Noted(SpAtten(keep=8, recent=0.5 if text else 0.0, text=text))
        with vtprune.applied(family.model(), [*chain, method]) as model:
            out = model.generate(
                **family.inputs(*rows), max_new_tokens=6, do_sample=False, return_dict_in_generate=True
            )
        assert len(method.calls) == (6 if text else 1)
        held = [layer.keys.shape[2] for layer in out.past_key_values.layers]
        assert held == sorted(held, reverse=True)
        assert held[-1] == 8 if text else held[-1] < held[1] < held[0]
        # Keys of deeper layers differ, so which entries they are is read off the decisions of the prefill.
        first = [method.calls[0][i][0] for i in range(2)]
        assert (first[1] <= first[0]).all()


def test_logits_count_without_mask_and_softmax():
    entries = cache_entries([(2, 6, 5), (3, 4, 1)])
    found = logits(entries)
    for r in range(2):
        for h in range(2):
            rows = entries.query_valid[r].nonzero().flatten()
            raw = entries.queries[r, 4 * h : 4 * h + 4][:, rows] @ entries.keys[r, h].T * entries.scale
            torch.testing.assert_close(found[r, h], raw.sum((0, 1)), atol=1e-4, rtol=1e-4)
    assert (found < 0).any()


def test_room_is_made_only_where_it_is_needed():
    score = torch.tensor([[[5.0, 1.0, 4.0, 3.0, 2.0, 0.0]]])
    candidate = torch.ones(1, 1, 6, dtype=torch.bool)

    def kept(start, important, recent, coming):
        counts = torch.tensor([important]), torch.tensor([recent])
        return with_room(score, candidate, start, *counts, coming)[0, 0].nonzero().flatten().tolist()

    assert kept(0, 2, 4, 0) == [0, 1, 2, 3, 4, 5]  # at the limit
    assert kept(0, 2, 4, 1) == [0, 2, 3, 4, 5]
    assert kept(0, 2, 4, 3) == [0, 2, 5]
    assert kept(0, 2, 4, 9) == [0, 2]  # no room for recent ones
    assert kept(2, 1, 2, 1) == [0, 1, 2, 5]


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "qwen2_5_vl"])
def test_entries_leave_before_a_further_turn_and_not_before(name):
    """The answer is that of the full cache; the turn, and what follows it, sees what is left."""
    family = FAMILIES[name]
    model = family.model()
    rows = [family.row(5, IMAGE, 7), family.row(2, IMAGE, 3, seed=1)]
    settings = dict(max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True)
    full = model.generate(**family.inputs(*rows), **settings)
    with vtprune.applied(model, SpAtten(rule="turns", keep=20, recent=0.5, room=3, text=True)):
        out = model.generate(**family.inputs(*rows), **settings)
        torch.testing.assert_close(torch.stack(out.logits), torch.stack(full.logits), atol=1e-4, rtol=1e-4)
        cache = out.past_key_values
        assert [x.keys.shape for x in cache.layers] == [x.keys.shape for x in full.past_key_values.layers]
        length = cache.get_seq_length()
        mask = torch.cat((family.inputs(*rows)["attention_mask"], torch.ones(2, 4 + 4, dtype=torch.long)), 1)
        given = torch.arange(length, length + 4).repeat(2, 1)
        more = family.row(4, seed=3).ids.repeat(2, 1)
        model(input_ids=more, attention_mask=mask, past_key_values=cache, position_ids=given)
        # Ten important entries, and three recent ones, since seven more are to come.
        assert {layer.keys.shape[2] for layer in cache.layers} == {13 + 4}
        assert cache.get_seq_length() == length + 4
        cache.crop(-4)  # what came can be taken back, not what left
        with pytest.raises(ValueError, match="cannot crop"):
            cache.crop(-1)


def test_values_of_all_but_the_best_visual_entries_bring_nothing():
    """What they would bring is lost, not given to others; text and prompts are not concerned."""
    method, slots = SpAtten(values=3), layer_slots([(3, 12, 4), (2, 2, 5)])
    assert method.local_values(slots) is None
    slots = decoded(slots)
    (part,) = method.local_values(slots).parts
    out = attend(slots.queries, slots.keys, slots.values, [part], valid=slots.valid, scale=slots.scale)
    for r in range(2):
        visual = slots.visual_entries[r, 0].nonzero().flatten().tolist()
        there = torch.ones(slots.keys.shape[2], dtype=torch.bool) if slots.valid is None else slots.valid[r]
        for group in range(2):
            heads = range(2 * group, 2 * group + 2)
            p = [
                (slots.keys[r, group] @ slots.queries[r, h, 0] * slots.scale).masked_fill(~there, -torch.inf).softmax(0)
                for h in heads
            ]
            votes = p[0] + p[1]
            lost = sorted(visual, key=lambda i, votes=votes: -votes[i])[3:]
            for h, weights in zip(heads, p, strict=True):
                used = weights.clone()
                used[lost] = 0
                expected = used @ slots.values[r, group]
                torch.testing.assert_close(out[r, 0, h], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "qwen2_5_vl"])
def test_local_values_beside_the_cascade(name):
    family = FAMILIES[name]
    with vtprune.applied(family.model(), SpAtten(keep=0.5, values=0.3)) as model:
        check_padding_and_beams(model, family)
    x, settings = family.inputs(family.row(5, IMAGE, 7)), dict(max_new_tokens=4, do_sample=False, output_logits=True)
    found = []
    for values in (0.3, 36, 1.0):
        with vtprune.applied(family.model(), SpAtten(keep=0.5, values=values)) as model:
            out = model.generate(**x, **settings, return_dict_in_generate=True)
            found.append(torch.stack(out.logits))
    assert (found[0] - found[2]).abs().max() > 1e-3
    torch.testing.assert_close(found[1], found[2], atol=1e-4, rtol=1e-4)


def test_what_is_asked_for():
    (stage,) = SpAtten().stages(INFO)
    assert (stage.place, stage.decodes, stage.turns, len(stage.layers)) == (Place.CACHE, False, False, 32)
    (stage,) = SpAtten(rule="turns").stages(INFO)
    assert (stage.decodes, stage.turns, stage.text) == (True, True, False)
    for wrong in (dict(first=1.0), dict(recent=2.0), dict(rule="both"), dict(queries="some")):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SpAtten(**wrong)
