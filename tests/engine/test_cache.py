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
    "visual entries": ["fastv:layer=1,keep=0.5", "tokenselect:keep=0.3"],  # what is read of them is chosen anew
    "scores": ["h2o:keep=24,recent=0.5,queries=all,mean=true,text=true"],  # summed up as long as the cache
}


@pytest.fixture(params=CHAINS)
def kept(request):
    """A model, the cache of a ragged batch, the mask of the prompt, and the logits of the next steps."""
    family = FAMILIES["llava-clip"]
    model = family.model()
    vtprune.apply(model, CHAINS[request.param])
    x = family.inputs(family.row(5, IMAGE, 7), family.row(9, seed=2), family.row(2, IMAGE, 3, IMAGE, 1, seed=3))
    with torch.no_grad():
        cache = model(**x, use_cache=True).past_key_values
        mask = x["attention_mask"]
        logits = steps(model, copy.deepcopy(cache), mask, torch.arange(3))
    return model, cache, mask, logits


def steps(model, cache, mask, rows):
    """Logits of three tokens, one after the other, (rows, 3, vocabulary); each row has tokens of its own."""
    found = []
    for i in range(3):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        ids = (20 + 3 * rows + i)[:, None]
        found.append(model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits)
    return torch.cat(found, 1)


@torch.no_grad()
def test_rows_are_reordered_selected_and_repeated(kept):
    model, cache, mask, logits = kept
    whole = [memory(layer) for layer in cache.layers]
    order = torch.tensor([2, 0, 1])
    cache.reorder_cache(order)
    assert [memory(layer) for layer in cache.layers] == whole
    after = steps(model, copy.deepcopy(cache), mask[order], order)
    torch.testing.assert_close(after, logits[order], **CLOSE)
    cache.batch_select_indices(torch.tensor([0, 2]))
    cache.batch_repeat_interleave(2)
    order = torch.tensor([2, 2, 1, 1])
    torch.testing.assert_close(steps(model, cache, mask[order], order), logits[order], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kept", ["two lengths", "heads apart", "few bits"], indirect=True)
def test_crop_offload_and_reset(kept):
    model, cache, mask, logits = kept
    length, rows = cache.get_seq_length(), torch.arange(3)
    steps(model, cache, mask, rows)
    cache.crop(-3)
    assert cache.get_seq_length() == length
    for layer in cache.layers:
        layer.offload()
        layer.prefetch()
    torch.testing.assert_close(steps(model, cache, mask, rows), logits, **CLOSE)
    with pytest.raises(ValueError, match="cannot crop 5 tokens"):
        cache.crop(-5)
    cache.reset()
    assert cache.get_seq_length() == 0
