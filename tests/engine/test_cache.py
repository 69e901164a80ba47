"""The two-length cache by itself: rows are reordered, repeated, selected and cropped together with their padding."""

from __future__ import annotations

import copy

import pytest
import torch

import vtprune
from tests.tiny import batch, picture, prompt, tiny_llava

CLOSE = dict(atol=1e-4, rtol=1e-4)
ROWS = [prompt(5, 0, 7, seed=1), prompt(9, seed=2), prompt(2, 0, 3, 0, 1, seed=3)]


@pytest.fixture
def kept():
    """A model, the cache of a ragged batch, and the logits of the next step."""
    model = tiny_llava()
    vtprune.apply(model, ["divprune:keep=0.5,positions=compact", "fastv:layer=2,keep=0.5"])
    x = {**batch(*ROWS), "pixel_values": picture(3)}
    with torch.no_grad():
        cache = model(**x, use_cache=True).past_key_values
        mask = torch.cat((x["attention_mask"], torch.ones(3, 1, dtype=torch.long)), 1)
        ids = torch.tensor([[7], [8], [9]])
        logits = model(input_ids=ids, attention_mask=mask, past_key_values=copy.deepcopy(cache)).logits
    return model, cache, mask, ids, logits


@torch.no_grad()
def test_reorder(kept):
    model, cache, mask, ids, logits = kept
    order = torch.tensor([2, 0, 1])
    cache.reorder_cache(order)
    after = model(input_ids=ids[order], attention_mask=mask[order], past_key_values=cache).logits
    torch.testing.assert_close(after, logits[order], **CLOSE)


@torch.no_grad()
def test_select_and_repeat(kept):
    model, cache, mask, ids, logits = kept
    cache.batch_select_indices(torch.tensor([2, 1]))
    cache.batch_repeat_interleave(2)
    order = torch.tensor([2, 2, 1, 1])
    after = model(input_ids=ids[order], attention_mask=mask[order], past_key_values=cache).logits
    torch.testing.assert_close(after, logits[order], **CLOSE)


@torch.no_grad()
def test_crop_and_reset(kept):
    model, cache, mask, ids, logits = kept
    length = cache.get_seq_length()
    model(input_ids=ids, attention_mask=mask, past_key_values=cache)
    cache.crop(-1)
    assert cache.get_seq_length() == length
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits, logits, **CLOSE)
    cache.reset()
    assert cache.get_seq_length() == 0
