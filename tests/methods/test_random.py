"""Random selection: which places, and which entries of the cache."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.methods.inputs import cache_entries
from tests.tiny import batch, picture, prompt, tiny_llava
from vtprune.methods.random import Random, random_mask, scrambled


def test_smaller_budgets_keep_subsets():
    masks = [random_mask(40, count, 3)[0] for count in (5, 12, 40)]
    assert [int(mask.sum()) for mask in masks] == [5, 12, 40]
    assert torch.equal(masks[0] & masks[1], masks[0])
    assert not torch.equal(masks[1], random_mask(40, 12, 4)[0])


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_scrambled_numbers_look_random(seed: int) -> None:
    x = torch.arange(20_000)
    found = scrambled(x, seed) / 2**24
    assert 0 <= float(found.min()) <= float(found.max()) < 1
    assert found.mean().item() == pytest.approx(0.5, abs=0.01)
    assert abs(torch.corrcoef(torch.stack((found[1:], found[:-1])))[0, 1].item()) < 0.03
    assert torch.equal(found[7:9], scrambled(x[7:9], seed) / 2**24)


def test_scrambled_numbers_are_those_of_splitmix64():
    """Seed 0 gives the first number of the published generator when it starts from 0, here its highest 24 bits."""
    assert int(scrambled(torch.tensor([0]), 0)) == 0xE220A8397B1DCDAF >> 40


def test_entries_differ_between_heads_layers_and_seeds():
    entries = cache_entries([(2, 30, 5), (4, 12, 3)])
    method = Random(keep=0.5, place="cache")
    mask = method.evict(entries).mask
    assert mask.sum(2).tolist() == [[15, 15], [6, 6]]
    assert not torch.equal(mask[0, 0], mask[0, 1])
    assert not torch.equal(mask, Random(keep=0.5, place="cache", seed=1).evict(entries).mask)


def test_cache_baseline_leaves_the_prefill_alone():
    model = tiny_llava()
    inputs = batch(prompt(3, 0, 4), prompt(0, 5)) | {"pixel_values": picture(2)}
    with torch.no_grad():
        before = model(**inputs).logits
        with vtprune.applied(model, "random", keep=0.25, place="cache"):
            after = model(**inputs, use_cache=True).logits
            report = vtprune.report(model)
    assert torch.equal(before, after)
    assert report.visual_tokens_after == report.visual_tokens_before
    assert report.kv_bytes_after < report.kv_bytes_before


def test_places_are_checked():
    with pytest.raises(ValueError, match="place must be one of 'output', 'cache', got 'decoder'"):
        Random(place="decoder")
