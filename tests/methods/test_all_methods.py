"""What every method promises, whatever its idea: new methods are tested here without a line of their own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.methods.inputs import (
    INFO,
    REQUIRED,
    cache_entries,
    encoder_tokens,
    followed,
    one_of,
    pictures,
    row,
    visual_tokens,
)
from vtprune.budget import token_count
from vtprune.engine.merging import Running
from vtprune.methods import Group, Keep, ModelInfo, Place, Replace, Stage, Store, build_method, get_method, method_names
from vtprune.methods.base import EncoderSignal, Method

METHODS = method_names()
WITH_KEEP = [n for n in METHODS if any(f.name == "keep" for f in dataclasses.fields(get_method(n)))]  # type: ignore[arg-type]
SIGNALS = {
    Place.ENCODER_LAYER: {"values"},
    Place.ENCODER_OUTPUT: {"encoder_attention", "pixel_steps", "projected", "text"},
    Place.DECODER_LAYER: {
        "last_query",
        "last_query_ahead",
        "last_row_ahead",
        "text_queries",
        "text_queries_ahead",
        "text_rows",
        "queries_keys",
        "hidden",
        "text",
        "closing_text",
        "prediction",
    },
    Place.ATTENTION: {"queries_keys_values", "cells"},
    Place.MLP: {"activations"},
    Place.CACHE: {"closing_queries", "all_queries"},
}
BEHIND = {"last_query", "text_queries", "text_rows", "queries_keys"}  # of the layer before; the first has none
WITH_POSITIONS = [n for n in METHODS if any(f.name == "positions" for f in dataclasses.fields(get_method(n)))]  # type: ignore[arg-type]


def acting(place: Place, names: list[str] = METHODS) -> list[str]:
    return [n for n in names if place in get_method(n).places]


def stages(name: str, place: Place, **parameters: object) -> list[Stage]:
    return [s for s in made(name, **parameters).stages(INFO) if s.place is place]


def made(name: str, **parameters: object) -> Method:
    return build_method(name, {**REQUIRED.get(name, {}), **parameters})


def attention(rows: int = 3, tokens: int = 20) -> Tensor:
    return torch.rand(rows, tokens, generator=torch.Generator().manual_seed(5)) / tokens


@pytest.mark.parametrize("name", METHODS)
def test_describes_itself(name: str) -> None:
    cls = get_method(name)
    method = made(name)
    assert cls.kind in {"pruning", "merging", "frequency", "exit", "sparse", "cache", "baseline"}
    assert cls.paper or cls.kind in {"baseline", "exit"}
    assert cls.__module__.rpartition(".")[2] == name
    found = method.stages(INFO)
    # A method may act elsewhere on other models (encoders that take any size, whose blocks cannot merge), or if asked.
    others = ({"any_size": True}, {"encoder_stages": False})
    anywhere = [*found, *(s for other in others for s in method.stages(dataclasses.replace(INFO, **other)))]
    acts = list(dict.fromkeys(s.place for s in found))
    assert [p for p in cls.places if p in acts] == acts
    assert {s.place for s in anywhere} <= set(cls.places)
    for stage in found:
        of_blocks = {x for x in stage.signals if isinstance(x, EncoderSignal)}
        assert stage.signals - of_blocks <= SIGNALS[stage.place]
        assert not of_blocks or stage.place is Place.ENCODER_OUTPUT
        inside = (Place.DECODER_LAYER, Place.ATTENTION, Place.MLP, Place.CACHE)
        decoder = dict.fromkeys(inside, INFO.decoder_layers)
        last = {Place.ENCODER_LAYER: INFO.encoder_layers, **decoder}.get(stage.place, 0)
        assert all(0 <= layer < last for layer in stage.layers)
        assert bool(stage.layers) == (stage.place is not Place.ENCODER_OUTPUT)
        assert stage.place is not Place.DECODER_LAYER or 0 not in stage.layers or not stage.signals & BEHIND
    assert method == made(name)
    assert hash(method) == hash(made(name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.positions = "original"  # type: ignore[attr-defined]


def test_only_methods_that_let_tokens_leave_the_prompt_have_a_position_rule() -> None:
    inside = {Place.ATTENTION, Place.MLP, Place.CACHE}
    assert {n for n in METHODS if set(get_method(n).places) <= inside} == set(METHODS) - set(WITH_POSITIONS)


@pytest.mark.parametrize("name", WITH_POSITIONS)
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_position_rule_reaches_the_stages(name: str, positions: str) -> None:
    assert {s.positions for s in made(name, positions=positions).stages(INFO)} == {positions}


@pytest.mark.parametrize("name", METHODS)
def test_fits_small_and_large_models(name: str) -> None:
    if name in REQUIRED:
        with pytest.raises(ValueError, match=f"{name} needs"):
            build_method(name, {}).stages(INFO)
        return
    for layers in (2, 3, 5, 80):
        blocks = tuple(range(layers))
        model = ModelInfo("x", layers, layers, False, 576, attention_blocks=blocks, scored_block=layers - 1)
        found = build_method(name, {} if name != "fastv" else {"layer": 1}).stages(model)
        assert found
        assert all(layer < layers for stage in found for layer in stage.layers)


@pytest.mark.parametrize("name", WITH_KEEP)
@pytest.mark.parametrize(
    ("keep", "error"), [(0, ValueError), (-1, ValueError), (0.0, ValueError), (25.0, ValueError), ("half", TypeError)]
)
def test_refuses_bad_budgets(name: str, keep: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="keep must be a ratio in"):
        build_method(name, {"keep": keep})


@pytest.mark.parametrize("name", WITH_POSITIONS)
def test_refuses_unknown_positions(name: str) -> None:
    with pytest.raises(ValueError, match="positions must be 'auto', 'original' or 'compact', got 'dense'"):
        build_method(name, {"positions": "dense"})


@pytest.mark.parametrize("name", acting(Place.ENCODER_OUTPUT, WITH_KEEP))
@pytest.mark.parametrize("keep", [1, 5, 0.098, 0.25, 0.5, 1.0, 1000])
@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 7, 1), (1, 9, 7), (3, 4, 5)])
def test_encoder_output(name: str, keep: float, grid: tuple[int, int, int]) -> None:
    """The count is exact, the choice repeats, and a batch equals its pictures alone."""
    for stage in stages(name, Place.ENCODER_OUTPUT, keep=keep):
        batch = pictures(3, grid, signals=stage.signals)
        tokens = batch.tokens
        decision = stage.decide(batch)
        if decision is None:
            unmoved = get_method(name).needs_video and grid[0] == 1
            assert token_count(keep, tokens) == tokens or name in ("fourier", "resize") or unmoved
            continue
        alone = [stage.decide(row(batch, i)) for i in range(3)]
        if isinstance(decision, Keep):
            assert decision.mask.dtype == torch.bool
            if get_method(name).adaptive:
                assert decision.mask.any(1).all()
            else:
                assert decision.mask.sum(1).tolist() == [token_count(keep, tokens)] * 3
            assert torch.equal(decision.mask, stage.decide(batch).mask)
            assert torch.equal(decision.mask, torch.cat([a.mask for a in alone]))
            if decision.mix is not None:
                new = decision.mix(batch.projected)
                assert new.shape == batch.projected.shape
                mixed = [a.mix(batch.projected[i : i + 1]) for i, a in enumerate(alone)]
                torch.testing.assert_close(new[decision.mask], torch.cat(mixed)[decision.mask])
            if decision.owner is not None:
                assert torch.equal(decision.owner, torch.cat([a.owner for a in alone]))
        else:
            assert isinstance(decision, Replace)
            groups = decision.features.shape[1]
            assert decision.features.shape == (3, groups, batch.encoded.shape[2])
            assert decision.owner.shape == (3, tokens)
            assert decision.owner.dtype == torch.int64
            assert all(set(o.tolist()) == set(range(groups)) for o in decision.owner)
            torch.testing.assert_close(decision.features, torch.cat([a.features for a in alone]))
            assert torch.equal(decision.owner, torch.cat([a.owner for a in alone]))


@pytest.mark.parametrize("name", acting(Place.ENCODER_OUTPUT, WITH_KEEP))
def test_encoder_output_keep_all(name: str) -> None:
    for stage in stages(name, Place.ENCODER_OUTPUT, keep=1.0):
        decision = stage.decide(pictures(signals=stage.signals))
        assert decision is None or decision.mask.all()


@pytest.mark.parametrize("name", acting(Place.ENCODER_OUTPUT))
def test_encoder_output_half_precision(name: str) -> None:
    for stage in stages(name, Place.ENCODER_OUTPUT):
        full = pictures(signals=stage.signals)
        half = dataclasses.replace(
            full, encoded=full.encoded.bfloat16(), projected=full.projected.bfloat16(), text=full.text.bfloat16()
        )
        widened = dataclasses.replace(
            half, encoded=half.encoded.float(), projected=half.projected.float(), text=half.text.float()
        )
        decision, expected = stage.decide(half), stage.decide(widened)
        if decision is None:
            assert expected is None
        elif isinstance(decision, Keep):
            assert torch.equal(decision.mask, expected.mask)
        else:
            assert decision.features.dtype == torch.bfloat16
            torch.testing.assert_close(decision.features.float(), expected.features, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", acting(Place.ENCODER_LAYER))
@pytest.mark.parametrize(("patches", "protected"), [(1, 1), (7, 0), (48, 1), (63, 0)])
def test_encoder_layers(name: str, patches: int, protected: int) -> None:
    """Through all layers: groups are complete, protected tokens stay alone, pictures do not matter to one another."""
    for stage in stages(name, Place.ENCODER_LAYER):
        tokens, running = encoder_tokens(0, patches, protected, count=3), Running()
        for layer in stage.layers:
            tokens = dataclasses.replace(tokens, layer=layer)
            decision = stage.decide(tokens)
            if decision is None:
                continue
            there = tokens.sizes > 0
            alone = [stage.decide(one_of(tokens, i)) for i in range(3)]
            keep = decision.mask if isinstance(decision, Keep) else decision.keep
            if keep is not None:
                assert stage.prunes
                assert keep.dtype == torch.bool
                assert keep[:, :protected].all()
            keep = there if keep is None else keep & there
            if isinstance(decision, Group):
                assert torch.equal(decision.owner, stage.decide(tokens).owner)
                assert (decision.owner[:, :protected] == torch.arange(protected)).all()
                groups = [set(o[k].tolist()) for o, k in zip(decision.owner, keep, strict=True)]
                assert all(g == set(range(len(g))) for g in groups)
                assert max(map(len, groups)) == decision.groups
                assert stage.ragged or {len(g) for g in groups} == {decision.groups}
                for i, one in enumerate(alone):
                    expected = torch.arange(int(there[i].sum())) if one is None else one.owner[0]
                    assert torch.equal(decision.owner[i][keep[i]], expected[keep[i][there[i]]])
            else:
                assert stage.ragged or len(set(keep.sum(1).tolist())) == 1
                for i, one in enumerate(alone):
                    assert torch.equal(keep[i][there[i]], there[i][there[i]] if one is None else one.mask[0])
            tokens = followed(tokens, running, decision, stage.proportional)
        left = (tokens.sizes[:, protected:] > 0).sum(1).tolist()
        assert min(left) >= 1
        if name in WITH_KEEP:
            wanted = token_count(build_method(name, {}).keep, patches)  # type: ignore[attr-defined]
            assert left == [wanted] * 3 or (get_method(name).adaptive and max(left) <= max(wanted, 1))


@pytest.mark.parametrize("name", acting(Place.ENCODER_LAYER, WITH_KEEP))
def test_encoder_layers_keep_all(name: str) -> None:
    for stage in stages(name, Place.ENCODER_LAYER, keep=1.0):
        assert all(stage.decide(encoder_tokens(layer)) is None for layer in stage.layers)


@pytest.mark.parametrize("name", acting(Place.DECODER_LAYER))
def test_decoder_layers(name: str) -> None:
    """Padding never stays, the choice repeats, and a batch equals its rows alone."""
    arrived = [[12, 5], [9, 0], [0, 0]]
    memory, alone_memory = {}, [{} for _ in arrived]
    for stage in stages(name, Place.DECODER_LAYER):
        scores = attention()
        for layer in stage.layers:
            tokens = visual_tokens(scores, arrived, layer, memory)
            tokens.attention.masked_fill_(~tokens.valid, 0)
            before = dict(memory)
            decision = stage.decide(tokens)
            repeated = stage.decide(dataclasses.replace(tokens, memory=before))
            mask = tokens.valid if decision is None else decision.mask
            assert mask.dtype == torch.bool
            assert not (mask & ~tokens.valid).any()
            assert torch.equal(mask, tokens.valid if repeated is None else repeated.mask)
            for r, counts in enumerate(arrived):
                n = max(sum(counts), 1)
                one = stage.decide(visual_tokens(scores[r : r + 1, :n].clone(), [counts], layer, alone_memory[r]))
                assert torch.equal(mask[r : r + 1, :n], tokens.valid[r : r + 1, :n] if one is None else one.mask)


@pytest.mark.parametrize("name", acting(Place.DECODER_LAYER, WITH_KEEP))
def test_decoder_layers_keep_all(name: str) -> None:
    for stage in stages(name, Place.DECODER_LAYER, keep=1.0)[:1]:
        tokens = visual_tokens(attention(), [[12, 5], [9, 0], [0, 0]], stage.layers[0])
        decision = stage.decide(tokens)
        assert decision is None or torch.equal(decision.mask, tokens.valid)


WHOLE = 1.0  # not 1, which is one token
LAYERED = [n for n in acting(Place.CACHE, WITH_KEEP) if get_method(n).layered]  # whose `keep` is that of the cache
AT_CACHE = {"fasa": {"act": "evict"}}  # what it takes for them to act there


def rounds(stage: Stage, bits: Tensor, rows: list[tuple[int, int, int]], text: bool, keep: float) -> None:
    """All heads give equally many candidates as many bits, a batch equals its rows alone, `keep` bounds the mean."""
    batch = cache_entries(rows, text=text)
    assert bits.shape == batch.candidate.shape
    assert not bits[~batch.candidate].any()
    assert set(bits[batch.candidate].tolist()) <= {2, 4, 8, 16}
    sizes = bits.sort(dim=2).values
    assert torch.equal(sizes, sizes[:, :1].expand_as(sizes))
    assert torch.equal(bits, stage.decide(dataclasses.replace(batch, memory={})).bits)
    for i, lengths in enumerate(rows):
        if sum(lengths):
            one = stage.decide(cache_entries(rows, text=text, alone=i)).bits
            assert torch.equal(bits[i : i + 1, :, -one.shape[2] :], one)
    assert keep is not WHOLE or (bits[batch.candidate] == 16).all()
    allowed = (16 * batch.counts(keep)).maximum(2 * batch.candidate[:, 0].sum(1))  # 2 bits are the least
    assert (bits[:, 0].sum(1) <= allowed + 14).all()  # the last entry may take more than its share


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("keep", [1, 5, 0.3, WHOLE])
def test_cache(name: str, keep: float, text: bool) -> None:
    """Every head keeps as many as allowed, only candidates leave, and a batch equals its rows alone."""
    rows = [(2, 12, 5), (9, 0, 3), (0, 6, 0)]  # text, visual tokens, text
    parameters = {"keep": keep, **AT_CACHE.get(name, {}), **({"text": True} if text else {})}
    if not parameters.keys() <= {f.name for f in dataclasses.fields(get_method(name))}:  # type: ignore[arg-type]
        pytest.skip("it never lets text leave")
    for stage in stages(name, Place.CACHE, **parameters):
        batch = cache_entries(rows, text=text, layer=stage.layers[-1])
        decision = stage.decide(batch)
        if isinstance(decision, Store):
            rounds(stage, decision.bits, rows, text, keep)
            continue
        mask = decision.mask
        assert mask.dtype == torch.bool
        assert mask.shape == batch.candidate.shape
        kept = (mask & batch.candidate).sum(2)
        wanted = batch.counts(keep)[:, None].expand_as(kept)
        assert torch.equal(kept, wanted) or (text and kept.ge(wanted).all() and kept.eq(kept[:, :1]).all())
        assert not (mask & ~batch.candidate & batch.valid[:, None]).any()
        assert torch.equal(mask, stage.decide(dataclasses.replace(batch, memory={}, across={})).mask)
        for i, lengths in enumerate(rows):
            if sum(lengths):
                one = stage.decide(cache_entries(rows, text=text, alone=i, layer=stage.layers[-1]))
                here = slice(-one.mask.shape[2], None)
                assert torch.equal(mask[i : i + 1, :, here], one.mask)
                for new, alone in ((decision.keys, one.keys), (decision.values, one.values)):
                    assert (new is None) == (alone is None)
                    if new is not None:
                        torch.testing.assert_close(new[i : i + 1, :, here][one.mask], alone[one.mask])
        for new, old in ((decision.keys, batch.keys), (decision.values, batch.values)):
            assert new is None or stage.mixes
            assert new is None or torch.equal(new[~batch.candidate], old[~batch.candidate])
            assert new is None or keep is not WHOLE or torch.equal(new, old)
        assert keep is not WHOLE or torch.equal(mask & batch.candidate, batch.candidate)


@pytest.mark.parametrize("name", LAYERED)
def test_cache_budgets_of_layers(name: str) -> None:
    """One budget for every layer, which a method that acts in fewer layers need not use."""
    budgets = tuple(max(0.1, 1 - i / INFO.decoder_layers) for i in range(INFO.decoder_layers))
    more = AT_CACHE.get(name, {})
    method = build_method(name, {"keep": list(budgets), **more})
    assert method.keep == budgets  # type: ignore[attr-defined]
    assert hash(method) == hash(build_method(name, {"keep": budgets, **more}))
    for stage in method.stages(INFO):
        for layer in stage.layers:
            entries = cache_entries([(2, 40, 5), (9, 0, 3)], layer=layer)
            decision = stage.decide(entries)
            if isinstance(decision, Store):
                one = build_method(name, {"keep": budgets[layer]}).stages(INFO)[0].decide(entries)
                assert torch.equal(decision.bits, one.bits)
                continue
            kept = (decision.mask & entries.candidate).sum(2)
            assert kept.tolist() == [[token_count(budgets[layer], n)] * 2 for n in (40, 0)]
    with pytest.raises(ValueError, match="keep must be one budget or 32, one for every decoder layer"):
        build_method(name, {"keep": (0.5, 0.25)}).stages(INFO)
    with pytest.raises(ValueError, match=r"keep must be a ratio in \(0, 1\]"):
        build_method(name, {"keep": (0.5, 25.0)})
