"""A kept cache by itself: rows are reordered, repeated, selected, cropped and moved together with their padding."""

from __future__ import annotations

import copy

import pytest
import torch

import vtprune
from tests.engine.test_packing import Rounding, memory
from tests.families import FAMILIES, IMAGE

CLOSE = dict(atol=1e-4, rtol=1e-4)
CHAINS = {
    "two lengths": ["divprune:keep=0.5,positions=compact", "fastv:layer=2,keep=0.5"],
    "heads apart": ["fastv:layer=2,keep=0.5", "snapkv:keep=0.5"],
    "few bits": ["fastv:layer=2,keep=0.5", Rounding()],
}


@pytest.fixture(params=CHAINS)
def kept(request):
    """A model, the cache of a ragged batch, and the logits of the next step."""
    family = FAMILIES["llava-clip"]
    model = family.model()
    vtprune.apply(model, CHAINS[request.param])
    x = family.inputs(family.row(5, IMAGE, 7), family.row(9, seed=2), family.row(2, IMAGE, 3, IMAGE, 1, seed=3))
    with torch.no_grad():
        cache = model(**x, use_cache=True).past_key_values
        mask = torch.cat((x["attention_mask"], torch.ones(3, 1, dtype=torch.long)), 1)
        ids = torch.tensor([[7], [8], [9]])
        logits = model(input_ids=ids, attention_mask=mask, past_key_values=copy.deepcopy(cache)).logits
    return model, cache, mask, ids, logits


@torch.no_grad()
def test_rows_are_reordered_selected_and_repeated(kept):
    model, cache, mask, ids, logits = kept
    whole = [memory(layer) for layer in cache.layers]
    order = torch.tensor([2, 0, 1])
    cache.reorder_cache(order)
    assert [memory(layer) for layer in cache.layers] == whole
    after = model(input_ids=ids[order], attention_mask=mask[order], past_key_values=copy.deepcopy(cache)).logits
    torch.testing.assert_close(after, logits[order], **CLOSE)
    cache.batch_select_indices(torch.tensor([0, 2]))
    cache.batch_repeat_interleave(2)
    order = torch.tensor([2, 2, 1, 1])
    after = model(input_ids=ids[order], attention_mask=mask[order], past_key_values=cache).logits
    torch.testing.assert_close(after, logits[order], **CLOSE)


@torch.no_grad()
def test_crop_offload_and_reset(kept):
    model, cache, mask, ids, logits = kept
    length = cache.get_seq_length()
    model(input_ids=ids, attention_mask=mask, past_key_values=cache)
    cache.crop(-1)
    assert cache.get_seq_length() == length
    for layer in cache.layers:
        layer.offload()
        layer.prefetch()
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits, logits, **CLOSE)
    with pytest.raises(ValueError, match="cannot crop 3 tokens"):
        cache.crop(-3)
    cache.reset()
    assert cache.get_seq_length() == 0
