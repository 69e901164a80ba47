"""Stages that have entries rounded: later queries see what a slow loop makes of them, and as many bytes leave."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

import vtprune
from tests.asking import answer, check_padding_and_beams
from tests.cases import EAGER
from tests.engine.test_eviction import Fixed, scattered
from tests.families import FAMILIES, IMAGE, SORTS, VIDEO
from vtprune.engine.packing import PackedLayer
from vtprune.methods import Keep, Method, Place, Stage, Store
from vtprune.methods._entries import best

CLOSE = dict(atol=1e-4, rtol=1e-4)
KINDS = [(name, "sdpa") for name in FAMILIES] + [(name, "eager") for name in EAGER] + [("internvl", "vtprune")]


@dataclasses.dataclass(frozen=True)
class Rounding(Method):
    """Gives entries 4, 2, 8 or all bits without rhyme or reason, and writes down which."""

    name = "rounding"
    kind = "cache"
    places = (Place.CACHE,)

    layers: tuple[int, ...] = (0, 2, 3, 4)
    text: bool = False
    every: int = 1
    again: bool = False
    log: list = dataclasses.field(default_factory=list)  # layer, bits, valid

    def stages(self, model):
        decodes = self.text
        return [Stage(Place.CACHE, self.decide, self.layers, text=self.text, decodes=decodes, every=self.every)]

    def decide(self, entries):
        before = entries.memory.get("bits_of_entries", torch.zeros(entries.candidate.shape, dtype=torch.long))
        new = entries.candidate & (before == 0)
        scores, count = scattered(new, entries.layer), new[:, 0].sum(1)
        bits = torch.where(new, 2, before)
        for share, width in ((0.7, 4), (0.3, 8), (0.1, 16)):
            bits = torch.where(best(scores, (count * share).long(), new), width, bits)
        entries.memory["bits_of_entries"] = bits
        self.log.append((entries.layer, bits, entries.valid))
        return Store(bits, self.again)


def rounded(keys: Tensor, values: Tensor, bits: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row, number of bits by number of bits, in numpy: (rows, heads, entries, dim) both."""
    keys, values = keys.numpy().copy(), values.numpy().copy()
    for row in range(len(keys)):
        few = np.isin(bits[row].numpy(), (2, 4, 8)) & valid[row].numpy()
        scale = np.ones((keys.shape[1], 1, keys.shape[3]), np.float32)
        for head in range(keys.shape[1]):
            if few[head].any():
                scale[head, 0] = np.sqrt(np.abs(values[row, head, few[head]]).max(0))
        for width in (2, 4, 8):
            chosen = [np.flatnonzero(few[h] & (bits[row, h].numpy() == width)) for h in range(keys.shape[1])]
            for head, at in enumerate(chosen):
                for channel in range(keys.shape[3] if len(at) else 0):
                    keys[row, head, at, channel] = nearest(keys[row, head, at, channel], width)
            for together in zip(*chosen, strict=True):
                heads = range(keys.shape[1])
                token = np.stack([values[row, h, at] / scale[h, 0] for h, at in zip(heads, together, strict=True)])
                token = nearest(token, width)
                for h, at in zip(heads, together, strict=True):
                    values[row, h, at] = token[h] * scale[h, 0]
    return torch.from_numpy(keys), torch.from_numpy(values)


def nearest(x: np.ndarray, bits: int) -> np.ndarray:
    """The nearest of 2 ** bits equally far numbers from the least to the greatest."""
    step = (x.max() - x.min()) / np.float32(2**bits - 1)
    return np.round((x - x.min()) / (step or 1)) * step + x.min()


@contextlib.contextmanager
def rounding_after_the_prefill(model, log):
    """Puts slowly rounded numbers in the place of those that a cache holds after the first call."""
    done = []

    def hook(module, args, output):
        if not done:
            for layer, bits, valid in log:
                held = output.past_key_values.layers[layer]
                held.keys, held.values = rounded(held.keys, held.values, bits, valid)
            done.append(True)

    handle = model.model.language_model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def memory(layer) -> int:
    """Bytes of all tensors that hang on a layer, whole storages."""
    seen, todo = {}, [vars(layer)]
    while todo:
        x = todo.pop()
        if isinstance(x, Tensor):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        elif isinstance(x, dict):
            todo += x.values()
        elif isinstance(x, (list, tuple)):
            todo += x
        elif dataclasses.is_dataclass(x):
            todo.append(vars(x))
    return sum(seen.values())


CHAINS = ("random:keep=0.5", "fastv:layer=2,keep=0.5", "fastv:layer=2,keep=7")


def prompts(family):
    found = [[family.row(5, IMAGE, 7)], [family.row(5, IMAGE, 7), family.row(3, IMAGE, 2, IMAGE, 6, seed=1)]]
    if VIDEO in family.kinds:
        found.append([family.row(9, seed=2), family.row(2, IMAGE, 3, VIDEO, 4, seed=2)])
    return found


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "attention", "chain"),
    [(*kind, "") for kind in KINDS]
    + [
        (*kind, chain)
        for kind in KINDS[::4]
        for chain in ("random:keep=0.5", "fastv:layer=2,keep=0.5", "fastv:layer=2,keep=7")
    ],
)
def test_equals_slow_rounding(name, attention, chain):
    family, new = FAMILIES[name], 5
    model = family.model(attention)
    for rows in prompts(family):
        x, method = family.inputs(*rows), Rounding()
        with vtprune.applied(model, [chain, method] if chain else method):
            tokens, logits, cache = answer(model, x, new)
            report = vtprune.report(model)
        with vtprune.applied(model, chain) if chain else contextlib.nullcontext():
            with rounding_after_the_prefill(model, method.log):
                expected = answer(model, x, new)
            plain = answer(model, x, 2)
        assert torch.equal(tokens, expected[0])
        torch.testing.assert_close(logits, expected[1], **CLOSE)
        assert (plain[1][:, 1] - logits[:, 1])[tokens[:, 0] == plain[0][:, 0]].abs().max() > 1e-3
        assert cache.get_seq_length() == expected[2].get_seq_length()
        for i, (found, wanted) in enumerate(zip(cache.layers, expected[2].layers, strict=True)):
            assert isinstance(found, PackedLayer) == (i in method.layers)
            valid = torch.ones(1, 1, found.keys.shape[2], 1, dtype=torch.bool)
            if (own := [x for x in method.log if x[0] == i]) and not own[0][2].all():
                valid = torch.nn.functional.pad(own[0][2], (0, new - 1), value=True)[:, None, :, None]
            for one, other in ((found.keys, wanted.keys), (found.values, wanted.values)):
                torch.testing.assert_close(one * valid, other * valid, **CLOSE)
        assert report.kv_bytes_after < report.kv_bytes_before
        places = [p for p in report.places if p.method == "rounding"]
        assert [p.layer for p in places] == [0, 2, 3, 4]
        assert all(p.tokens_before == p.tokens_after and "at 2 bits" in p.note for p in places)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_tensors(dtype):
    family = FAMILIES["llava-clip"]
    x = family.inputs(family.row(5, IMAGE, 7), family.row(3, IMAGE, 2, IMAGE, 6, seed=1))
    model = family.model().to(dtype)
    with vtprune.applied(model, Rounding(layers=(0, 1, 2, 3, 4))):
        cache = model(**x, use_cache=True).past_key_values
        report = vtprune.report(model)
    plain = model(**x, use_cache=True).past_key_values
    assert report.kv_bytes_after == sum(map(memory, cache.layers))
    assert report.kv_bytes_before == sum(map(memory, plain.layers))
    ratio = report.kv_bytes_after / report.kv_bytes_before
    assert ratio < 0.75
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys, layer.values
        assert not layer.blocks
    assert [layer.held_bytes[0] for layer in cache.layers] == [layer.held_bytes[1] for layer in cache.layers]


@torch.no_grad()
@pytest.mark.parametrize("name", SORTS)
@pytest.mark.parametrize("method", [Rounding(), Rounding(text=True, every=3)], ids=["once", "text"])
def test_padding_and_beams(name, method):
    """In double precision: in single precision what is halfway between two codes may fall either way."""
    with vtprune.applied(FAMILIES[name].model().double(), method) as model:
        check_padding_and_beams(model, FAMILIES[name])


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_further_turns(name):
    """What was rounded once stays as it is; a picture of a later turn is rounded by itself."""
    family = FAMILIES[name]
    first, second = family.row(5, IMAGE, 7), family.row(2, IMAGE, 4, seed=1)
    with vtprune.applied(family.model(), method := Rounding()) as model:
        cache = model(**family.inputs(first), use_cache=True).past_key_values
        before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        more = {k: v for k, v in family.inputs(second).items() if k != "attention_mask"}
        given = torch.arange(len(first.ids), len(first.ids) + len(second.ids))[None]
        cache = model(**more, past_key_values=cache, position_ids=given, use_cache=True).past_key_values
    n = len(first.ids)
    for i, layer in enumerate(cache.layers):
        assert torch.equal(layer.keys[:, :, :n], before[i][0])
        assert torch.equal(layer.values[:, :, :n], before[i][1])
    assert [len(cache.layers[i].blocks) for i in method.layers] == [2] * 4
    assert [bits.shape[2] for _, bits, _ in method.log] == [n] * 4 + [n + len(second.ids)] * 4


@torch.no_grad()
@pytest.mark.parametrize("again", [False, True])
def test_text_is_rounded_past_a_thousand_tokens(again):
    family = FAMILIES["llava-clip"]
    model = family.model()
    del model.model.language_model.layers[2:]
    model.model.language_model.config.num_hidden_layers = 2
    with vtprune.applied(model, method := Rounding(layers=(1,), text=True, every=100, again=again)):
        _, logits, cache = answer(model, family.inputs(family.row(5, IMAGE, 7)), 1010)
    packed = cache.layers[1]
    assert logits.isfinite().all()
    assert cache.get_seq_length() == packed.keys.shape[2] == 48 + 1009
    # Once for the prompt, then for every hundred tokens.
    assert [bits.shape[2] for _, bits, _ in method.log] == [48 + 100 * i for i in range(11)]
    assert [block.length for block in packed.blocks] == ([1048] if again else [48] + [100] * 10)
    assert packed.latest[0].shape[2] == 9
    assert memory(packed) < 0.5 * memory(cache.layers[0])


@torch.no_grad()
@pytest.mark.parametrize("again", [False, True])
def test_blocks_of_text_are_those_of_the_slow_loop(again):
    """Keys and values of layer 1 do not depend on what is rounded there, so that the bare model knows them exactly."""
    family = FAMILIES["llava-clip"]
    model, row = family.model(), family.row(5, IMAGE, 7)

    def fed():
        cache = model(**family.inputs(row), use_cache=True).past_key_values
        for token in range(5, 12):
            cache = model(input_ids=torch.tensor([[token]]), past_key_values=cache).past_key_values
        return cache.layers[1]

    exact = fed()
    method = Rounding(layers=(1,), text=True, every=3, again=again)
    with vtprune.applied(model, method):
        packed = fed()
    keys, values, start = exact.keys, exact.values, 0
    for _, bits, valid in method.log:
        here = slice(0 if again else start, start := bits.shape[2])
        parts = rounded(keys[:, :, here], values[:, :, here], bits[:, :, here], valid[:, here])
        keys, values = keys.clone(), values.clone()
        keys[:, :, here], values[:, :, here] = parts
    assert start == 54
    torch.testing.assert_close(packed.keys, keys, **CLOSE)
    torch.testing.assert_close(packed.values, values, **CLOSE)
    assert [block.length for block in packed.blocks] == ([54] if again else [48, 3, 3])


@torch.no_grad()
@pytest.mark.parametrize("method", [Rounding(), Rounding(text=True)])
def test_without_pictures_nothing_happens(method):
    family = FAMILIES["llava-clip"]
    model = family.model()
    x = family.inputs(family.row(9))
    expected = answer(model, x, 4)
    with vtprune.applied(model, method):
        found = answer(model, x, 4)
    assert torch.equal(found[1], expected[1])
    assert memory(found[2].layers[1]) == memory(expected[2].layers[1]) or method.text


@torch.no_grad()
def test_report():
    family = FAMILIES["llava-clip"]
    with vtprune.applied(family.model(), ["fastv:layer=2,keep=0.5", "zipcache"]) as model:
        model(**family.inputs(family.row(5, IMAGE, 7)))
        report = vtprune.report(model)
    said = str(report).splitlines()
    assert said[2].startswith("  decoder cache 0 to 1: zipcache, 36 -> 36")
    assert said[2].endswith(" (22 at 4 bits, 14 at 2 bits per head)")
    assert said[3].startswith("  decoder cache 2 to 4: zipcache, 18 -> 18")
    assert said[3].endswith(" (11 at 4 bits, 7 at 2 bits per head)")
    assert sum(p.kv_bytes_saved for p in report.places) == report.kv_bytes_before - report.kv_bytes_after


@torch.no_grad()
def test_what_is_rounded_may_leave_later():
    """A cache that one method left behind is served to another one."""
    family = FAMILIES["llava-clip"]
    first, second = family.row(5, IMAGE, 7), family.row(2, IMAGE, 4, seed=1)
    model = family.model()
    with vtprune.applied(model, Rounding()):
        cache = model(**family.inputs(first), use_cache=True).past_key_values
    whole = [layer.keys.clone() for layer in cache.layers]
    more = {k: v for k, v in family.inputs(second).items() if k != "attention_mask"}
    with vtprune.applied(model, "h2o:keep=0.25"):
        cache = model(**more, past_key_values=cache, use_cache=True).past_key_values
    for layer, before in zip(cache.layers, whole, strict=True):
        assert torch.equal(layer.keys[:, :, : before.shape[2]], before)
        assert layer.keys.shape[2] == before.shape[2] + len(second.ids) - 27
        assert not isinstance(layer, PackedLayer) or not layer.blocks


@torch.no_grad()
def test_wrong_decisions():
    family = FAMILIES["llava-clip"]
    uneven = Stage(
        Place.CACHE, lambda x: Store(2 * (torch.arange(x.keys.shape[2]) % (2 + torch.arange(2)[:, None]))), (1,)
    )
    with vtprune.applied(family.model(), Fixed(uneven)) as model, pytest.raises(ValueError, match="as many bits"):
        model(**family.inputs(family.row(5, IMAGE, 7)))
    nothing = Stage(Place.CACHE, lambda x: Store(torch.zeros_like(x.candidate, dtype=torch.uint8)), (1,))
    with vtprune.applied(family.model(), Fixed(nothing)) as model:
        model(**family.inputs(family.row(5, IMAGE, 7)))
        report = vtprune.report(model)
    assert report.kv_bytes_after == report.kv_bytes_before
    assert "kept everything" in str(report)
    keep = Stage(Place.CACHE, lambda x: Keep(x.candidate), (1,))
    with pytest.raises(ValueError, match="both evict from the cache of layer 1"):
        vtprune.apply(family.model(), [Fixed(keep), Fixed(uneven)])
