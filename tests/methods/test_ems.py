"""Evict, then merge: who stays, who merges into whom, and with what weight."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import INFO, cache_entries
from vtprune.methods._entries import behind_pictures, counted, received
from vtprune.methods.base import Place
from vtprune.methods.ems import EMS, combined, likeness_weights, merged, nearest

ROWS = [(2, 12, 5), (4, 9, 3)]


def test_the_larger_score_counts_once_both_have_the_same_mean():
    local, overall = torch.tensor([[[0.0, 4.0, 2.0, 9.0]]]), torch.tensor([[[3.0, 1.0, 2.0, 99.0]]])
    among = torch.tensor([[[True, True, True, False]]])
    assert combined(local, overall, among)[..., :3].tolist() == [[[3.0, 4.0, 2.0]]]
    nothing = torch.zeros_like(local)
    assert torch.equal(combined(local, nothing, among), local)


def test_an_entry_merges_into_the_most_alike_of_its_picture():
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [1.0, 0.0], [0.1, 3.0]])[None, None]
    centre = torch.tensor([[[True, True, False, True, False]]])
    folded = torch.tensor([[[False, False, True, False, True]]])
    target, cosine = nearest(keys, centre, folded, torch.tensor([[0, 0, 0, 1, 1]]))
    assert target.tolist() == [[[0, 1, 0, 3, 3]]]  # entry 4 is more like entry 1, which is of another picture
    assert cosine[0, 0, 2] > 0.99
    assert cosine[0, 0, [0, 1, 3]].isneginf().all()
    # Of two that are equally alike the first.
    assert nearest(keys, centre, folded, torch.zeros(1, 5, dtype=torch.long))[0][0, 0, 2] == 0
    # Where there is nothing of its picture, it goes nowhere.
    target, cosine = nearest(keys, centre, folded, torch.tensor([[0, 0, 0, 0, 1]]))
    assert target[0, 0, 4] == 4
    assert cosine[0, 0, 4].isneginf()


def test_means_are_weighted_and_what_stays_alone_is_untouched():
    x = torch.tensor([[[[1.0], [2.0], [4.0], [8.0]]]])
    target = torch.tensor([[[0, 0, 2, 0]]])
    weight = torch.tensor([[[2.0, 1.0, 0.0, 1.0]]])
    assert merged(x, target, weight)[0, 0, [0, 2], 0].tolist() == [(2 + 2 + 8) / 4, 4.0]
    # Nothing that weighs anything: nothing changes.
    assert torch.equal(merged(x, target, torch.zeros_like(weight)), x)


def test_likeness_and_length_make_the_other_weight():
    values = torch.tensor([[[[3.0, 4.0], [0.0, 15.0], [1.0, 0.0]]]])
    target, cosine = torch.tensor([[[0, 0, 0]]]), torch.tensor([[[-torch.inf, 0.5, -0.2]]])
    weight = likeness_weights(values, target, cosine, torch.tensor([[[False, True, True]]]))
    torch.testing.assert_close(weight, torch.tensor([[[1.0, 0.5 * 15 / 20, 0.0]]]))


@pytest.mark.parametrize("weights", ["score", "likeness"])
@pytest.mark.parametrize("merge_keys", [False, True])
def test_by_hand(weights, merge_keys):
    """Ranks, centres, what merges and what leaves, entry by entry."""
    entries = behind_pictures(cache_entries(ROWS))
    method = EMS(keep=3, considered=2.5, tau=0.1, weights=weights, merge_keys=merge_keys, kernel=1, window=99)
    decision = method.decide(entries)
    assert (decision.keys is not None) == merge_keys
    score = received(entries)
    for r in range(2):
        visual = entries.candidate[r, 0].nonzero().flatten().tolist()
        for h in range(2):
            order = sorted(visual, key=lambda i, r=r, h=h: -score[r, h, i])
            assert decision.mask[r, h].nonzero().flatten().tolist() == sorted(order[:3])
            unit = torch.nn.functional.normalize(entries.keys[r, h], dim=-1)
            own = {i: float(score[r, h, i]) if weights == "score" else 1.0 for i in order[:3]}
            sums = {i: [own[i] * entries.values[r, h, i], own[i] * entries.keys[r, h, i]] for i in own}
            total = dict(own)
            for i in order[3:7]:
                to = max(order[:3], key=lambda c, i=i, unit=unit: float(unit[c] @ unit[i]))
                alike = float(unit[to] @ unit[i])
                if alike < 0.1:
                    continue
                lengths = [entries.values[r, h, j].norm() for j in (i, to)]
                w = float(score[r, h, i]) if weights == "score" else alike * float(lengths[0] / (sum(lengths) + 1e-6))
                total[to] += w
                sums[to] = [sums[to][0] + w * entries.values[r, h, i], sums[to][1] + w * entries.keys[r, h, i]]
            for i in own:
                torch.testing.assert_close(decision.values[r, h, i], sums[i][0] / total[i], atol=1e-5, rtol=1e-4)
                if merge_keys:
                    torch.testing.assert_close(decision.keys[r, h, i], sums[i][1] / total[i], atol=1e-5, rtol=1e-4)


def test_noise_leaves_before_anything_merges():
    """With `considered=1`, or where nothing is alike enough, it is an eviction."""
    entries = cache_entries(ROWS)
    for method in (EMS(keep=3, considered=1.0, tau=-1.0), EMS(keep=3, tau=1.0)):
        assert torch.equal(method.decide(entries).values, entries.values)
    plain, merging = EMS(keep=3, tau=1.0).decide(entries), EMS(keep=3, tau=-1.0).decide(entries)
    assert torch.equal(plain.mask, merging.mask)
    assert not torch.equal(plain.values, merging.values)


def test_the_window_is_text_behind_the_pictures_whoever_asks():
    entries = cache_entries([(2, 12, 5), (9, 6, 0)])
    closing = behind_pictures(entries)
    assert counted(closing).sum(1).tolist() == [5, 1]  # a prompt that ends with its picture: the last token
    assert closing.query_at[:, -1].tolist() == [18, 18]
    alone = EMS(keep=3, queries="all").decide(entries)
    given = EMS(keep=3).decide(dataclasses.replace(closing, candidate=entries.candidate))
    assert not torch.equal(alone.mask, given.mask)


def test_half_precision_is_averaged_in_full():
    entries = cache_entries(ROWS)
    half = dataclasses.replace(entries, values=entries.values.bfloat16())
    wide = dataclasses.replace(entries, values=half.values.float())
    method = EMS(keep=3, tau=-1.0)
    assert torch.equal(method.decide(half).values, method.decide(wide).values.bfloat16())


def test_what_is_asked_for():
    (stage,) = EMS().stages(INFO)
    assert (stage.place, stage.mixes, stage.text, stage.decodes) == (Place.CACHE, True, False, False)
    assert stage.signals == {"closing_queries"}
    assert EMS(text=True).stages(INFO)[0].signals == EMS(queries="all").stages(INFO)[0].signals == {"all_queries"}
    for wrong in (dict(considered=0.5), dict(tau=2.0), dict(kernel=4), dict(window=0), dict(weights="length")):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EMS(**wrong)
