"""FASA: a few frequency chunks find what is read, or what stays in the cache."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO, cache_entries
from tests.methods.reading import GROUPS, HEADS, decoded, floats, layer_slots, read, split
from vtprune.calibration import ChunkCalibration, fasa_chunks
from vtprune.methods import Place
from vtprune.methods._chunks import agreement, dominant
from vtprune.methods.fasa import FASA, load_chunks, save_chunks

ROWS = [(3, 12, 4), (2, 5, 1, 8, 6), (9,)]
CHUNKS = (((0, 2), (1, 3)),) * 32


def promised(slots, row, group, chunks, count, sharpen=True):
    """The best visual entries of a key-value head by some chunks, one query head after the other."""
    visual = slots.visual_entries[row, 0].nonzero()[:, 0]
    dims, score = [*chunks, *(c + 4 for c in chunks)], torch.zeros(len(visual))
    for head in range(group * 2, group * 2 + 2):
        logits = slots.keys[row, group][visual][:, dims] @ slots.queries[row, head, 0, dims] * slots.scale
        score += logits.softmax(0) if sharpen else logits
    return set(visual[score.argsort(descending=True, stable=True)[:count]].tolist())


@pytest.mark.parametrize("sharpen", [True, False])
def test_reads_what_given_chunks_promise_and_all_text(sharpen):
    method, slots = FASA(keep=4, chunks=CHUNKS, sharpen=sharpen), layer_slots(ROWS)
    assert method.read(slots) is None
    for _ in range(3):
        slots = decoded(slots)
        decision = method.read(slots)
        for row, text in ((0, 7), (1, 9), (2, 9)):
            for group, found in enumerate(read(slots, decision, row)):
                visual, other = split(slots, found, row)
                assert visual == promised(slots, row, group, CHUNKS[0][group], 4, sharpen)
                assert len(other) == text + slots.keys.shape[2] - 22


def test_all_chunks_together_find_what_attention_would():
    slots = layer_slots(ROWS)
    method = FASA(keep=4, share=1.0)
    method.read(slots)
    assert slots.held["chunks"].tolist() == [[[0, 1, 2, 3]] * GROUPS] * 3
    slots = decoded(slots)
    for group, found in enumerate(read(slots, method.read(slots))):
        assert split(slots, found)[0] == promised(slots, 0, group, (0, 1, 2, 3), 4)


def test_each_prompt_finds_its_chunks():
    """By its last queries, and the same in a batch as alone."""
    method, slots = FASA(keep=0.3, share=2, queries=3), layer_slots(ROWS)
    method.read(slots)
    for i in range(2):
        one = layer_slots(ROWS, alone=i)
        method.read(one)
        assert torch.equal(slots.held["chunks"][i], one.held["chunks"][0])
    seen = slots.visual_entries[:1, :1].expand(-1, 3, -1)
    shares = agreement(slots.queries[:1, :, -3:], slots.keys[:1], seen, torch.tensor([4]), 4)
    assert torch.equal(dominant(shares, 2)[0], slots.held["chunks"][0])
    # The next prompt on the same cache looks for itself.
    later = dataclasses.replace(decoded(slots), text=torch.zeros(3, 2), queries=floats(3, HEADS, 2, 8, seed=8), past=21)
    method.read(later)
    assert set(later.held) == {"chunks"}


def test_a_batch_reads_what_its_rows_read_alone():
    method, batch = FASA(keep=0.3), layer_slots(ROWS)
    alone = [layer_slots(ROWS, alone=i) for i in range(3)]
    for x in (batch, *alone):
        method.read(x)
    for step in range(2):
        queries = floats(3, HEADS, 8, seed=7 + step)
        batch = decoded(batch, queries)
        alone = [decoded(x, queries[i : i + 1]) for i, x in enumerate(alone)]
        decision = method.read(batch)
        for i, one in enumerate(alone):
            expected = read(one, method.read(one))
            padding = batch.keys.shape[2] - one.keys.shape[2]
            found = read(batch, decision, i)
            assert found == [{x + padding for x in head} for head in expected] * (len(found) // len(expected))


def test_heads_that_hold_different_entries_read_their_own():
    """After an eviction the n-th entries of heads are different slots."""
    slots = decoded(layer_slots([(3, 6, 2, 6, 4)]))
    visual = slots.visual_entries.clone()
    visual[0, :, 3:15] = True
    visual[0, 0, 7:9] = visual[0, 1, 9:11] = False
    slots = dataclasses.replace(slots, visual_entries=visual)
    decision = FASA(keep=4, chunks=CHUNKS).read(slots)
    for group, found in enumerate(read(slots, decision)):
        own = set(visual[0, group].nonzero()[:, 0].tolist())
        assert len(found & own) == 4
        assert found - own == set((~visual[0, group]).nonzero()[:, 0].tolist())


def test_evicts_by_all_closing_queries():
    entries = cache_entries([(3, 14, 3), (5, 9, 1)])
    table = (((0,), (1,)),) * 32
    mask = FASA(keep=5, act="evict", chunks=table).evict(entries).mask
    for row in range(2):
        visual = entries.candidate[row, 0].nonzero()[:, 0]
        for group in range(2):
            score = torch.zeros(len(visual))
            for head in range(4 * group, 4 * group + 4):
                for query in entries.query_valid[row].nonzero()[:, 0].tolist():
                    dims = [group, group + 2]
                    logits = entries.keys[row, group][visual][:, dims] @ entries.queries[row, head, query, dims] * 0.5
                    seen = visual <= entries.query_at[row, query]
                    if seen.any():
                        score += logits.masked_fill(~seen, -torch.inf).softmax(0)
            assert set(mask[row, group].nonzero()[:, 0].tolist()) == set(visual[score.topk(5).indices].tolist())


def test_stages():
    (reading,), (evicting,) = FASA().stages(INFO), FASA(act="evict").stages(INFO)
    assert (reading.place, reading.decodes) == (Place.ATTENTION, True)
    assert (evicting.place, evicting.decodes) == (Place.CACHE, False)
    assert reading.layers == evicting.layers == tuple(range(32))


def test_chunks_go_through_a_file(tmp_path):
    path = tmp_path / "chunks.json"
    save_chunks(path, CHUNKS)
    assert load_chunks(path) == CHUNKS
    assert FASA(chunks=[[[2, 0], [3, 1]]] * 32).chunks == CHUNKS
    slots = decoded(layer_slots(ROWS))
    (stage,) = FASA(keep=4, chunks=path).stages(INFO)
    assert read(slots, stage.decide(slots)) == read(slots, FASA(keep=4, chunks=CHUNKS).read(slots))
    path.write_text(json.dumps({"chunks": [[[0, 0]]]}))
    with pytest.raises(ValueError, match="file written by save_chunks"):
        FASA(chunks=str(path)).stages(INFO)


@pytest.mark.parametrize("wrong", [(), ((),), (((),),), (((0, 0),),), (((-1,),),), (((0, 1), (2,)),), 3])
def test_refuses_chunks(wrong):
    with pytest.raises(ValueError, match="chunks must be"):
        FASA(chunks=wrong)


def test_refuses():
    with pytest.raises(ValueError, match="each of 32 layers, got 2"):
        FASA(chunks=CHUNKS[:2]).stages(INFO)
    with pytest.raises(ValueError, match="one list for each of 2 key-value heads, of numbers below 4"):
        FASA(keep=4, chunks=(((0, 4), (1, 2)),) * 32).read(decoded(layer_slots(ROWS)))
    with pytest.raises(ValueError, match="act must be one of"):
        FASA(act="drop")
    with pytest.raises(ValueError, match="share must be a ratio"):
        FASA(share=1.5)


@torch.no_grad()
def test_calibration_averages_prompts_with_pictures():
    family = FAMILIES["llava-clip"]
    model, table = family.model(), []
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 9, seed=2), family.row(9, seed=3)]
    alone = []
    for row in rows[:2]:
        calibration = ChunkCalibration(FASA(keep=0.3, share=2, queries=3))
        with vtprune.applied(model, calibration):
            model(**family.inputs(row))
        alone.append(calibration.total)
    for layer in range(5):
        table.append(dominant(alone[0][layer] + alone[1][layer], 2))
    batches = [family.inputs(rows[0], rows[2]), family.inputs(rows[2]), family.inputs(rows[1])]
    with vtprune.applied(model, "divprune", keep=0.5):  # is set aside meanwhile
        found = fasa_chunks(model, batches, keep=0.3, share=2, queries=3)
        model(**batches[0])
        assert vtprune.report(model).visual_tokens_after == 18
    assert torch.equal(torch.tensor(found), torch.stack(table))
    with vtprune.applied(model, "fasa", keep=0.3, chunks=found):
        model.generate(**batches[0], max_new_tokens=2)
    with pytest.raises(ValueError, match="batches must hold pictures"):
        fasa_chunks(model, [family.inputs(rows[2])])
