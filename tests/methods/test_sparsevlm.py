"""SparseVLM: raters, ranks, recycling and the rotary correction by hand; the specification's counts and traps."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO, visual_tokens
from vtprune.methods import sparsevlm
from vtprune.methods.sparsevlm import SparseVLM


def counts(method, arrived, depth=32):
    """Kept and merged tokens behind every cut of a row whose pictures lose nothing in between."""
    rating, cutting = method.stages(dataclasses.replace(INFO, decoder_layers=depth))
    memory, found, tokens = {}, {}, sum(arrived)
    attention = torch.rand(1, tokens, generator=torch.Generator().manual_seed(0))
    rating.decide(visual_tokens(attention, [arrived], 0, memory))
    for layer in cutting.layers:
        found[layer] = int(cutting.decide(visual_tokens(attention, [arrived], layer, memory)).mask.sum())
    return found


def test_presets():
    assert counts(SparseVLM(recycle=0.0), [576]) == {3: 300, 7: 200, 16: 110}
    assert counts(SparseVLM(recycle=0.0, shares=(66, 30, 17)), [576]) == {3: 66, 7: 30, 16: 17}
    assert counts(SparseVLM(recycle=0.0), [576], depth=28) == {3: 300, 6: 200, 14: 110}
    assert counts(SparseVLM(keep=1.0), [576]) == {3: 576, 7: 576, 16: 576}
    # 276 of 576 leave: 83 of them are recycled, as 9 tokens.
    assert counts(SparseVLM(), [576])[3] == 309
    assert counts(SparseVLM(version=2, shares=(300, 200, 118)), [576]) == {3: 300, 7: 200, 16: 118}


def test_positions():
    def rules(**parameters):
        return {stage.positions for stage in SparseVLM(**parameters).stages(INFO)}

    assert rules() == {"auto"}
    assert rules(version=2) == {"original"}
    assert rules(version=2, positions="compact") == {"compact"}


def test_raters_by_hand():
    g = torch.Generator().manual_seed(0)
    visual, text = torch.randn(2, 7, 6, generator=g), torch.randn(2, 5, 6, generator=g)
    seen, words = torch.ones(2, 7, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    seen[0, 5:] = words[1, :2] = False
    mean = sparsevlm.relevance(visual, text, seen, words)
    chosen = sparsevlm.raters(mean, words)
    for row in range(2):
        v, t = visual[row, seen[row]].double(), text[row, words[row]].double()
        expected = (v @ t.T).softmax(-1).mean(0)
        torch.testing.assert_close(mean[row, words[row]].double(), expected, rtol=1e-4, atol=1e-6)
        assert chosen[row, words[row]].tolist() == (expected > expected.mean()).tolist()
    alike = sparsevlm.raters(torch.full((1, 4), 0.25), torch.tensor([[False, True, True, True]]))
    assert alike.tolist() == [[False, True, True, True]]


def made_up(seed=0):
    """Text rows with padding on both axes, heads that share keys, and true rotations of some positions."""
    g = torch.Generator().manual_seed(seed)
    tokens = visual_tokens(torch.rand(2, 6, generator=g), [[6], [4]], 5)
    frequencies = 10.0 ** -torch.arange(4)
    at, behind = torch.arange(6), torch.arange(6, 9)

    def turned(positions):
        angles = torch.cat((positions[:, None] * frequencies,) * 2, -1).expand(2, -1, -1)
        return angles.cos(), angles.sin()

    queries, keys = torch.randn(2, 4, 3, 8, generator=g), torch.randn(2, 2, 6, 8, generator=g)
    rows = dataclasses.replace(
        tokens.text_rows, queries=queries, keys=keys, query_rotation=turned(behind), token_rotation=turned(at)
    )
    return rows, torch.tensor([[True, False, True], [False, True, True]]), tokens.valid


def test_attention_of_the_best_heads_by_hand():
    """Probabilities over what positions alone give; the heads whose raters see most of the picture."""
    rows, asking, valid = made_up()
    found = sparsevlm.attended_by_best_heads(rows, asking, 2, valid)
    for row in range(2):
        n = int(valid[row].sum())
        keys = rows.keys[row, :, :n].repeat_interleave(2, 0)
        shares = (rows.queries[row, :, asking[row]] @ keys.transpose(1, 2) * rows.scale).softmax(-1)
        bias = torch.zeros(3, n)
        for i in range(3):
            for j in range(n):
                angles = (6 + i - j) * 10.0 ** -torch.arange(4)
                bias[i, j] = 2 * angles.cos().sum() / math.sqrt(8)
        corrected = shares / bias[asking[row]]
        best = corrected.sum((1, 2)).argsort(descending=True)[:2]
        torch.testing.assert_close(found[row, :n], corrected[best].mean((0, 1)), rtol=1e-3, atol=1e-4)
        assert not found[row, n:].any()


def test_rank():
    """Of every row alone, whatever the padding; a picture of as many tokens as the rank stays whole."""
    rows, asking, valid = made_up()
    values = sparsevlm.singular_values(rows, asking, valid)
    ranks = sparsevlm.rank(values, asking.sum(1), valid.sum(1))
    for row in range(2):
        n = int(valid[row].sum())
        keys = rows.keys[row, :, :n].repeat_interleave(2, 0)
        shares = (rows.queries[row, :, asking[row]] @ keys.transpose(1, 2) * rows.scale).softmax(-1).mean(0)
        torch.testing.assert_close(values[row, :2], torch.linalg.svdvals(shares), rtol=1e-4, atol=1e-6)
        assert int(ranks[row]) == int(torch.linalg.matrix_rank(shares))
    tokens = torch.tensor([20, 20, 3, 20])
    assert sparsevlm.rank_counts(torch.tensor([3, 3, 3, 0]), tokens, 4.5, 2.0).tolist() == [15, 15, 3, 2]
    assert sparsevlm.rank_counts(torch.tensor([9]), torch.tensor([20]), 13.5, 0.0).tolist() == [19]


def test_recycling():
    """Two heaps of dropped tokens become two tokens, on the slots of their centres; the rest leaves."""
    relation = torch.tensor([[0.9, 0.5, 0.4, 0.41, 0.42, 0.3, 0.2, 0.1, 0.0, 0.05]])
    dropped = torch.ones(1, 10, dtype=torch.bool)
    dropped[0, 0] = False
    pool = sparsevlm.recycled(relation, dropped, 0.5)
    assert pool.nonzero()[:, 1].tolist() == [1, 2, 3, 4, 5]
    x = torch.tensor([9.0, 1.0, 1.1, 0.9, 5.0, 5.2, 7, 7, 7, 7])[None, :, None].expand(-1, -1, 4)
    owner = sparsevlm.clustered(x, pool, sparsevlm.clusters_of(pool, 5), 6)
    assert owner[0, 6:].tolist() == [6, 7, 8, 9]
    assert len(set(owner[0, 1:4].tolist())) == 1
    assert len(set(owner[0, 4:6].tolist())) == 1
    assert sparsevlm.clusters_of(pool[:, :2], 1).tolist() == [1], "never more clusters than tokens"


@torch.no_grad()
@pytest.mark.parametrize("parameters", [{}, {"version": 2}, {"rank_scale": 1.5}], ids=["v1", "v2", "rank"])
@pytest.mark.parametrize("name", ["llava-clip", "qwen3_vl", "llava_next"])
def test_batch_equals_its_rows_alone(name, parameters):
    """With merged tokens too, by prefill, without a cache and while decoding; a row without a picture is left alone."""
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(9, seed=2), family.row(1, IMAGE, 2, IMAGE, 4, seed=4)]
    settings = dict(max_new_tokens=3, do_sample=False)
    with vtprune.applied(family.model(), "sparsevlm", keep=0.3, merge=3, heads=0.5, **parameters) as model:
        x = family.inputs(*rows)
        together = [model(**x).logits[:, -1], model(**x, use_cache=False).logits[:, -1]]
        answers = model.generate(**x, **settings)[:, -3:]
        for i, row in enumerate(rows):
            alone = family.inputs(row)
            for logits in together:
                torch.testing.assert_close(logits[i], model(**alone).logits[0, -1], atol=1e-4, rtol=1e-4)
            assert torch.equal(answers[i], model.generate(**alone, **settings)[0, -3:])


@torch.no_grad()
@pytest.mark.parametrize("parameters", [{}, {"version": 2}, {"rank_scale": 1.5}], ids=["v1", "v2", "rank"])
def test_a_prompt_that_ends_with_its_picture(parameters):
    """Nobody rates: the first tokens stay."""
    family = FAMILIES["llava-clip"]
    row = family.row(5, IMAGE)
    with vtprune.applied(family.model(), "sparsevlm", keep=4, recycle=0.0, **parameters) as model:
        assert model(**family.inputs(row)).logits.isfinite().all()
        (shown,) = vtprune.report(model).pictures
        assert list(shown.kept) == list(range(len(shown.kept)))
