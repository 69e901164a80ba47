"""What every method at the cache promises, against the bare model whose cache is edited by hand after every call."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vtprune
from tests.asking import check_padding_and_beams
from tests.engine.test_packing import rounded
from tests.families import FAMILIES, IMAGE, VIDEO, Row
from tests.methods.inputs import INFO
from tests.reference import positions_of
from vtprune.budget import pyramid, token_count
from vtprune.engine.cache import held_bytes
from vtprune.methods import Keep, Method, Place, Store, build_method, get_method, method_names

CLOSE = dict(atol=1e-4, rtol=1e-4)
METHODS = [name for name in method_names() if get_method(name).layered and get_method(name).kind == "cache"]
EVICTING = [name for name in METHODS if name != "zipcache"]  # that one rounds: test_packing.py
VARIANTS = {  # other ways of theirs: text leaves too, once, at every step, or before further turns
    "a2sf-steps": dict(keep=24, recent=0.25, text=True, decodes=True),
    "h2o-steps": dict(keep=24, recent=0.5, queries="all", mean=True, text=True),
    "keyformer-steps": dict(keep=24, recent=0.5, text=True),
    "spatten-steps": dict(keep=24, recent=0.5, text=True),
    "snapkv-text": dict(keep=12, window=4, text=True),
    "ems-text": dict(keep=12, window=4, tau=-1.0, merge_keys=True, text=True),
    "fasa-evicts": dict(keep=0.3, act="evict"),
    "spatten-turns": dict(keep=24, recent=0.5, text=True, rule="turns", room=4),
    "spatten-turns-visual": dict(keep=10, rule="turns"),
}
TOGETHER = {"spatten", "zipvl"}  # whose heads keep the same entries
SOME = ["llava-clip", "qwen2_5_vl", "internvl"]


@dataclasses.dataclass(frozen=True)
class Noted(Method):
    """Another method, whose decisions are written down: by call, layer -> what stays, new keys and values; or bits."""

    kind = "cache"
    places = (Place.CACHE,)

    inner: Method
    only: tuple[int, ...] | None = None  # layers at which it acts; all of its own if None
    calls: list[dict[int, Any]] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return self.inner.name

    def stages(self, model):
        found = [dataclasses.replace(s, decide=self.noting(s.decide)) for s in self.inner.stages(model)]
        return found if self.only is None else [dataclasses.replace(s, layers=self.only) for s in found]

    def noting(self, decide):
        def decided(entries):
            decision = decide(entries) or Keep(entries.candidate)
            if not self.calls or entries.layer in self.calls[-1]:
                self.calls.append({})
            if isinstance(decision, Store):
                self.calls[-1][entries.layer] = decision.bits.where(entries.candidate, 0), entries.valid
            else:
                stays = (decision.mask | ~entries.candidate) & entries.valid[:, None]
                self.calls[-1][entries.layer] = stays, decision.keys, decision.values
            return decision

        return decided


def noted(name: str, **parameters: Any) -> Noted:
    return Noted(build_method(name, parameters or {"keep": 0.3}))


def edit(cache: Any, call: dict[int, Any]) -> None:
    """Let entries of a cache of one row leave, head by head, or round them."""
    for layer, (stays, *new) in call.items():
        held = cache.layers[layer]
        if stays.dtype != torch.bool:
            held.keys, held.values = rounded(held.keys, held.values, stays, *new)
            continue
        for name, x in zip(("keys", "values"), new, strict=True):
            x = getattr(held, name) if x is None else x
            setattr(held, name, torch.stack([x[0, h, stays[0, h]] for h in range(stays.shape[1])])[None])


@contextlib.contextmanager
def plain_masks(model: Any, sees: Mapping[int, Tensor] = MappingProxyType({})) -> Iterator[None]:
    """Every layer of the bare model sees all that it holds, however long its cache is, or what it is told to see.

    The latter by layer: bool, (kv_heads, queries, keys).
    """

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        held = kwargs["past_key_values"].layers
        past = held[module.layer_idx].get_seq_length() if module.layer_idx < len(held) else 0
        new = (args[0] if args else kwargs["hidden_states"]).shape[1]
        mask = torch.ones(1, 1, new, past + new, dtype=torch.bool).tril(past)
        if module.layer_idx in sees:
            mask = sees[module.layer_idx].repeat_interleave(module.num_key_value_groups, 0)[None]
        return args, {**kwargs, "attention_mask": mask}

    handles = [
        layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True) for layer in model.model.language_model.layers
    ]
    yield
    for handle in handles:
        handle.remove()


def fed(model: Any, family: Any, turns: list[Any], edits: Any = ()) -> tuple[Tensor, Any]:
    """Feed rows one after the other, each in one call; logits of all tokens, and the cache.

    Edits of the cache are given with the number of the row behind which they are made.
    """
    positions = positions_of(model, family, turns[0].then(*turns[1:]))
    cache, logits, start = DynamicCache(config=model.config.get_text_config()), [], 0
    for number, row in enumerate(turns):
        end = start + len(row.ids)
        x = {k: v for k, v in family.inputs(row).items() if k != "attention_mask"}
        here = positions[:, start:end]
        given = here[:, None] if len(positions) > 1 else here
        logits.append(model(**x, past_key_values=cache, position_ids=given, use_cache=True).logits)
        for behind, call in edits:
            if behind == number:
                edit(cache, call)
        start = end
    return torch.cat(logits, 1), cache


def conversation(family: Any) -> list[Any]:
    """A prompt with pictures, an answer token by token, a turn with another picture, and one without."""
    more = (VIDEO, 2) if VIDEO in family.kinds else (2,)
    answer = [family.row(1, seed=10 + i) for i in range(4)]
    return [
        family.row(5, IMAGE, 7, *more),
        *answer,
        family.row(3, IMAGE, 9, seed=1),
        *answer[:2],
        family.row(4, seed=2),
    ]


def check_editing(family: Any, method: Noted) -> None:
    """Turn by turn and token by token, logits are the same, and in the end what the caches hold."""
    model, turns = family.model(), conversation(family)
    with vtprune.applied(model, method):
        logits, cache = fed(model, family, turns)
    (stage, *_) = method.inner.stages(INFO)
    behind = []
    for i, row in enumerate(turns):
        if i and stage.turns and len(row.ids) > 1:
            behind.append(i - 1)
        if row.items or stage.decodes:
            behind.append(i)
    with plain_masks(model):
        expected, edited = fed(model, family, turns, list(zip(behind, method.calls, strict=True)))
    torch.testing.assert_close(logits, expected, **CLOSE)
    for ours, theirs in zip(cache.layers, edited.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, **CLOSE)
        torch.testing.assert_close(ours.values, theirs.values, **CLOSE)
    held, unpruned = held_bytes(cache)
    assert held < unpruned


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_equals_editing_the_cache(name: str, family: Any) -> None:
    check_editing(family, noted(name))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_editing_the_cache(name: str, family: Any) -> None:
    check_editing(family, noted(name.partition("-")[0], **VARIANTS[name]))


@torch.no_grad()
@pytest.mark.parametrize("family_name", FAMILIES)
@pytest.mark.parametrize("name", EVICTING)
def test_only_visual_entries_leave_and_bytes_are_those_of_the_tensors(name: str, family_name: str) -> None:
    family = FAMILIES[family_name]
    model = family.model()
    rows = [family.row(5, IMAGE, 7), family.row(9, seed=2), family.row(1, IMAGE, 2, IMAGE, 4, seed=4)]
    whole = model(**family.inputs(*rows)).past_key_values
    method = noted(name)
    with vtprune.applied(model, method):
        cache = model(**family.inputs(*rows)).past_key_values
        report = vtprune.report(model)
    bytes_of = [sum(x.keys.nbytes + x.values.nbytes for x in held.layers) for held in (whole, cache)]
    assert [report.kv_bytes_before, report.kv_bytes_after] == bytes_of
    assert bytes_of[1] < bytes_of[0]
    (call,) = method.calls
    for i, (stays, keys, values) in call.items():
        held, before = cache.layers[i], whole.layers[i]
        for r, row in enumerate(rows):
            text = ~row.visual
            for h in range(stays.shape[1]):
                kept = stays[r, h, -len(row.ids) :]
                assert kept[text].all()
                for found, old, new in ((held.keys, before.keys, keys), (held.values, before.values, values)):
                    expected = (old if new is None else new)[r, h, -len(row.ids) :][kept]
                    torch.testing.assert_close(found[r, h, -int(kept.sum()) :], expected, **CLOSE)
                    # What a prompt without pictures holds, and all text, is what it was.
                    there = found[r, h, -int(kept.sum()) :][text[kept]]
                    torch.testing.assert_close(there, old[r, h, -len(row.ids) :][text], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("family_name", SOME)
@pytest.mark.parametrize("name", EVICTING)
def test_budgets_of_layers_and_heads(name: str, family_name: str) -> None:
    """Layers hold what their own budget allows; heads of a layer equally many entries, mostly not the same ones."""
    family = FAMILIES[family_name]
    model, row = family.model(), family.row(5, IMAGE, 7)
    budgets = pyramid(0.4, len(model.model.language_model.layers), 4)
    assert budgets[0] > 0.6 > 0.2 > budgets[-1]
    method = noted(name, keep=budgets)
    with vtprune.applied(model, method):
        cache = model(**family.inputs(row)).past_key_values
        report = vtprune.report(model)
    text, visual = int((~row.visual).sum()), int(row.visual.sum())
    acted = sorted(method.calls[0])
    for i, held in enumerate(cache.layers):
        left = token_count(budgets[i], visual) if i in acted else visual
        assert held.keys.shape[2] == held.values.shape[2] == text + left
    assert [p.tokens_after for p in report.places] == [token_count(budgets[i], visual) for i in acted]
    alike = [torch.equal(stays[:, 0], stays[:, 1]) for stays, *_ in method.calls[0].values()]
    assert all(alike) if name in TOGETHER else not any(alike)


@torch.no_grad()
@pytest.mark.parametrize("family_name", SOME)
@pytest.mark.parametrize("name", VARIANTS)
def test_padding_and_beams(name: str, family_name: str) -> None:
    """Of the other ways; the first ones go through test_equivalences.py."""
    method = build_method(name.partition("-")[0], VARIANTS[name])
    with vtprune.applied(FAMILIES[family_name].model(), method) as model:
        check_padding_and_beams(model, FAMILIES[family_name])


NEW = 1010


def answered(family: Any, methods: list[Noted]) -> tuple[Any, Any, Tensor, Any]:
    """A prompt, and more than a thousand new tokens: model, conversation, logits of these tokens, and the cache."""
    model, row = family.model(), family.row(5, IMAGE, 7)
    language_model = model.model.language_model
    language_model.layers = language_model.layers[: len(methods)]
    language_model.config.num_hidden_layers = len(methods)
    with vtprune.applied(model, methods):
        settings = dict(max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True)
        out = model.generate(**family.inputs(row), **settings)
    answer = Row(out.sequences[0, len(row.ids) : -1], ())
    assert out.past_key_values.get_seq_length() == len(row.ids) + NEW - 1
    return model, [row, answer], torch.stack(out.logits, 1), out.past_key_values


@torch.no_grad()
def test_a_thousand_new_tokens_behind_one_eviction() -> None:
    """Every layer with another method; the answer fed again in one call to the edited cache says the same."""
    family = FAMILIES["qwen2_5_vl"]
    once = [name for name in EVICTING if name not in TOGETHER]
    methods = [dataclasses.replace(noted(name), only=(i,)) for i, name in enumerate(once)]
    model, turns, logits, cache = answered(family, methods)
    with plain_masks(model):
        expected, edited = fed(model, family, turns, [(0, method.calls[0]) for method in methods])
    torch.testing.assert_close(logits, expected[:, -NEW:], atol=1e-3, rtol=1e-3)
    for ours, theirs in zip(cache.layers, edited.layers, strict=True):
        assert ours.keys.shape[2] < cache.get_seq_length()
        torch.testing.assert_close(ours.keys, theirs.keys, **CLOSE)
        torch.testing.assert_close(ours.values, theirs.values, **CLOSE)


@torch.no_grad()
def test_a_thousand_new_tokens_with_a_cache_that_never_grows() -> None:
    """Every layer with another method; all tokens again in one call, in which each sees what was held then."""
    family, sees = FAMILIES["qwen2_5_vl"], {}
    steps = {name.partition("-")[0]: parameters for name, parameters in VARIANTS.items() if name.endswith("-steps")}
    methods = [dataclasses.replace(noted(name, **steps[name]), only=(i,)) for i, name in enumerate(steps)]
    model, turns, logits, cache = answered(family, methods)
    length = cache.get_seq_length()
    for layer, method in enumerate(methods):
        assert len(method.calls) == NEW
        sees[layer] = torch.ones(2, length, length, dtype=torch.bool).tril()  # (kv_heads, queries, slots)
        for h, seen in enumerate(sees[layer]):
            held, end = torch.arange(0), 0
            for call, new in zip(method.calls, [length - NEW + 1, *[1] * (NEW - 1)], strict=True):
                came = torch.arange(end, end + new)
                stays = call[layer][0][0, h]
                gone = torch.cat((held, came))[~stays]
                held, end = torch.cat((held, came))[stays], end + new
                seen[end:, gone] = False
            assert len(held) == cache.layers[layer].keys.shape[2] == steps[method.name]["keep"]
    with plain_masks(model, sees):
        expected, _ = fed(model, family, [turns[0].then(turns[1])])
    torch.testing.assert_close(logits, expected[:, -NEW:], atol=1e-3, rtol=1e-3)
