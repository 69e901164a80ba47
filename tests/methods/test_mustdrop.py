"""MustDrop: windows of tokens that look alike, and the filter in the decoder."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import vtprune
from tests.methods.inputs import INFO, encoder_tokens, pictures
from tests.tiny import batch, picture, prompt, tiny_llava
from vtprune.methods import Place
from vtprune.methods._groups import average
from vtprune.methods.mustdrop import (
    MustDrop,
    fitting_side,
    key_set,
    likeness,
    passes,
    window_owner,
    windows_of,
)


def test_windows_leave_ragged_edges_alone():
    assert windows_of((1, 5, 4), 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert windows_of((1, 2, 5), 3).shape == (0, 9)


def test_likeness_is_the_mean_over_pairs():
    x = torch.randn(1, 9, 5, generator=torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.cosine_similarity(x[0][:, None], x[0][None], dim=-1)
    expected = (cosine.sum() - 9) / 72
    torch.testing.assert_close(likeness(x, windows_of((1, 3, 3), 3))[0, 0], expected)


def test_windows_fit_the_grid_and_the_budget():
    assert fitting_side((1, 24, 24), 144) == 3
    assert fitting_side((1, 24, 24), 63) == 4
    assert fitting_side((1, 16, 16), 64) == 2
    assert fitting_side((1, 16, 16), 63) == 4
    assert fitting_side((1, 8, 8), 3) == 4, "as few as possible"
    assert fitting_side((2, 4, 4), 8) == 2
    assert fitting_side((1, 7, 5), 1) == 3, "ragged edges stay"
    batch = pictures(grid=(1, 8, 8))
    assert MustDrop(keep=0.25).decide(batch).mask.sum(1).tolist() == [16] * len(batch.encoded)
    assert MustDrop(keep=0.5, window=3).decide(batch).mask.sum(1).tolist() == [32] * len(batch.encoded)


def test_middle_of_a_window():
    assert window_owner(torch.tensor([[True]]), windows_of((1, 3, 3), 3), 9).tolist() == [[4] * 9]
    owner = window_owner(torch.tensor([[False, True]]), windows_of((1, 2, 4), 2), 8)
    assert owner.tolist() == [[0, 1, 7, 7, 4, 5, 7, 7]]


def test_plain_mean():
    x = torch.tensor([[[1.0], [3.0], [8.0]]])
    assert average(x, torch.tensor([[1, 1, 2]]))[0, 1:, 0].tolist() == [2.0, 8.0]


@pytest.mark.parametrize(("keep", "left"), [(192, 192), (128, 128), (64, 64), (1, 36), (500, 496)])
def test_budgets_of_a_clip_picture(keep, left):
    batch = pictures(grid=(1, 24, 24))
    assert MustDrop(keep=keep).decide(batch).mask.sum(1).tolist() == [left, left]


def test_the_threshold_belongs_to_every_picture():
    x = torch.randn(2, 36, 12, generator=torch.Generator().manual_seed(0))
    x[0, windows_of((1, 6, 6), 3)[2]] = 1.0
    batch = dataclasses.replace(pictures(grid=(1, 6, 6)), encoded=x)
    (stage,) = MustDrop(tau=0.8).stages(INFO)
    assert stage.decide(batch).mask.sum(1).tolist() == [28, 36]
    assert stage.budget is None


def test_the_key_set_is_rounded_up():
    attention = torch.tensor([[0.1, 0.5, 0.2, 0.2] + [0.0] * 10])
    assert key_set(attention).tolist() == [[1, 2]]


def test_whole_grids_only():
    with pytest.raises(ValueError, match="mustdrop merges windows of whole grids; put it before"):
        MustDrop().decide(dataclasses.replace(pictures(), grid=None))


def test_bad_windows():
    with pytest.raises(ValueError, match="window must be a whole number >= 2"):
        MustDrop(window=1)
    with pytest.raises(TypeError, match="window must be a whole number >= 2, got"):
        MustDrop(window=(2, 2))


def test_behind_a_block_windows_of_the_residual_stream_merge():
    tokens = encoder_tokens(patches=36)
    hidden = tokens.hidden.clone()
    hidden[0, 1:][windows_of((1, 6, 6), 3)[2]] = 1.0
    tokens = dataclasses.replace(tokens, hidden=hidden)
    (stage,) = MustDrop(keep=28, block=0).stages(INFO)
    assert (stage.place, stage.layers, stage.after_block, stage.ragged) == (Place.ENCODER_LAYER, (0,), True, False)
    group = stage.decide(tokens)
    assert group.groups == 29
    assert group.owner[:, 0].tolist() == [0, 0]
    window = 1 + windows_of((1, 6, 6), 3)[2]
    assert group.owner[0, window].tolist() == [group.owner[0, window[0]]] * 9
    assert (group.owner[0] == 0).sum() == 1  # [CLS] stays alone
    assert all(set(row) == set(range(29)) for row in group.owner.tolist())


def test_behind_a_block_the_threshold_belongs_to_every_picture():
    tokens = encoder_tokens(patches=36, protected=0)
    hidden = tokens.hidden.clone()
    hidden[0][windows_of((1, 6, 6), 3)[2]] = 1.0
    (stage,) = MustDrop(tau=0.8, block=1).stages(INFO)
    group = stage.decide(dataclasses.replace(tokens, hidden=hidden))
    assert (stage.ragged, group.ragged, group.weighted) == (True, True, False)
    assert (group.owner.amax(1) + 1).tolist() == [28, 36]
    with pytest.raises(ValueError, match="whole square grids, got 30 of 36"):
        stage.decide(dataclasses.replace(tokens, hidden=hidden[:, :30]))


def test_blocks_of_the_model():
    with pytest.raises(ValueError, match="block must be a layer from 0 to 22"):
        MustDrop(block=23).stages(INFO)


def test_filter_by_hand():
    """A token stays if all words together, or one of them, give it enough; both limits are strict."""
    total = torch.tensor([[0.5, 0.3, 0.1, 0.1, 9.0]])
    largest = torch.tensor([[0.01, 0.3, 0.2, 0.1, 9.0]])
    valid = torch.tensor([[True, True, True, True, False]])
    assert passes(total, largest, valid, (0.4, 0.2)).tolist() == [[True, True, True, False, False]]
    assert passes(total, largest, valid, (1.0, 0.0)).tolist() == [[True, True, True, True, False]]


@torch.no_grad()
@pytest.mark.parametrize("block", [None, 0])
def test_the_key_set_never_leaves(block):
    """With limits that nothing passes, it alone is left: a share of what the encoder let through, rounded up."""
    model = tiny_llava()
    x = {**batch(prompt(5, 0, 7, seed=1), prompt(2, 0, 3, 0, 2, seed=2)), "pixel_values": picture(3)}
    limits = dict(thresholds=(1.0, 1.0), layers=(2, 3), key_share=0.3, window=2, keep=0.5, block=block)
    with vtprune.applied(model, "mustdrop", **limits):
        logits = model(**x).logits
        shown = vtprune.report(model).pictures
        assert [len(p.kept) for p in shown] == [math.ceil(0.3 * len(p.entered)) for p in shown]
        torch.testing.assert_close(model(**x, use_cache=False).logits, logits, atol=1e-4, rtol=1e-4)
        first = {"input_ids": x["input_ids"][1:], "attention_mask": x["attention_mask"][1:]}
        alone = model(**first, pixel_values=x["pixel_values"][1:]).logits
        torch.testing.assert_close(logits[1, -1], alone[0, -1], atol=1e-4, rtol=1e-4)
    with vtprune.applied(model, "mustdrop", **{**limits, "key_share": 0.0}):
        model(**x)
        assert not any(p.kept for p in vtprune.report(model).pictures)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_what_leaves_in_the_decoder_leaves_the_caches_between_the_filters(positions):
    """Rows of a batch lose different numbers; later tokens see of each layer what is said to be left, and no more."""
    model = tiny_llava()
    rows = prompt(5, 0, 7, seed=1), prompt(2, 0, 3, 0, 2, seed=2)
    x = {**batch(*rows), "pixel_values": picture(3)}
    limits = dict(keep=1.0, thresholds=(1.0, 1.0), layers=(2, 4), key_share=0.3, positions=positions)
    held, answers = [], []
    for evict in (True, False):
        with vtprune.applied(model, "mustdrop", **limits, evict=evict):
            out = model.generate(
                **x, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
            report = vtprune.report(model)
            held.append([layer.keys.shape[2] - 3 for layer in out.past_key_values.layers])
            answers.append(torch.stack(out.logits))
            assert out.past_key_values.get_seq_length() == x["input_ids"].shape[1] + 3
    visual, left = len(rows[1]) - 7, sum(len(p.kept) for p in report.pictures if p.row == 1)
    full, short = len(rows[1]), len(rows[1]) - visual + left
    assert held == [[full, short, short, short, short], [full, full, short, short, short]]
    torch.testing.assert_close(answers[0][0], answers[1][0])  # the prefill is the same
    assert (answers[0] - answers[1]).abs().max() > 1e-4
    assert all(p.tokens_after == sum(len(q.kept) for q in report.pictures) for p in report.places if p.layer == 4)


@torch.no_grad()
def test_the_filter_sees_sums_and_largest_values():
    """Against the maps of eager attention: heads are averaged first."""
    row = prompt(5, 0, 7, seed=1)
    x = {**batch(row), "pixel_values": picture()}
    maps = tiny_llava(attention="eager")(**x, output_attentions=True).attentions[1].mean(1)[0]
    visual = (row == 1).nonzero()[:, 0]
    seen = maps[-7:][:, visual]
    limits = float((seen.sum(0) / seen.sum()).median()), float(seen.amax(0).median())
    expected = ~((seen.sum(0) < limits[0] * seen.sum()) & (seen.amax(0) < limits[1]))
    assert 0 < expected.sum() < len(visual)
    model = tiny_llava()
    vtprune.apply(model, MustDrop(keep=1.0, thresholds=limits, layers=(2,), key_share=0))
    model(**x)
    assert list(vtprune.report(model).pictures[0].kept) == expected.nonzero()[:, 0].tolist()


def test_bad_limits():
    with pytest.raises(TypeError, match="thresholds must be two numbers"):
        MustDrop(thresholds=0.1)
    with pytest.raises(ValueError, match="thresholds must be a number"):
        MustDrop(thresholds=(0.1, 2.0))
