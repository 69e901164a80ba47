"""Signals are what the model's own attention would say: compared with the maps that eager attention returns."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch

import vtprune
from tests.tiny import TOKENS, batch, picture, prompt, tiny_llava
from vtprune.kernels import attention_column_mass
from vtprune.methods import Keep, Method, Place, Stage

CLOSE = dict(atol=1e-5, rtol=1e-4)


@dataclasses.dataclass(frozen=True)
class Probe(Method):
    """Keeps everything and remembers what it was shown."""

    name: ClassVar[str] = "probe"
    kind = "baseline"
    places = (Place.ENCODER_OUTPUT, Place.DECODER_LAYER)

    signal: str = "last_query"
    layer: int = 2
    seen: list = dataclasses.field(default_factory=list)

    def stages(self, model):
        if self.signal == "encoder_attention":
            return [Stage(Place.ENCODER_OUTPUT, self.look, signals=frozenset({self.signal}))]
        return [Stage(Place.DECODER_LAYER, self.look, (self.layer,), frozenset({self.signal}))]

    def look(self, tokens):
        self.seen.append(tokens)


@pytest.fixture
def eager():
    return tiny_llava(attention="eager")


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("signal", ["last_query", "text_queries"])
def test_decoder_attention(eager, attention, use_cache, signal):
    rows = [prompt(5, 0, 7, seed=1), prompt(2, 0, 3, seed=2), prompt(4, seed=3), prompt(3, 0, 2, 0, 4, seed=4)]
    x = {**batch(*rows), "pixel_values": picture(4)}
    maps = eager(**x, output_attentions=True, use_cache=False).attentions[1].mean(1)  # (rows, queries, keys)
    visual = x["input_ids"] == 1
    model, probe = tiny_llava(attention=attention), Probe(signal=signal)
    vtprune.apply(model, probe)
    model(**x, use_cache=use_cache)
    (tokens,) = probe.seen
    for i in range(4):
        if not bool(visual[i].any()):
            assert not bool(tokens.valid[i].any())
            continue
        queries = torch.zeros_like(visual[i])
        queries[-1] = True
        if signal == "text_queries":
            queries = ~visual[i] & (visual[i].long().cumsum(0) > 0)
        expected = maps[i][queries].mean(0)[visual[i]]
        torch.testing.assert_close(tokens.attention[i][tokens.valid[i]], expected, **CLOSE)
        assert tokens.arrived[i].tolist() == ([TOKENS, TOKENS] if i == 3 else [TOKENS, 0])


@torch.no_grad()
def test_decoder_attention_in_a_second_turn(eager):
    """The softmax runs over the kept cache as well."""
    first, second = prompt(4, seed=1), prompt(2, 0, 3, seed=2)
    both = torch.cat((first, second))[None]
    maps = eager(input_ids=both, pixel_values=picture(), output_attentions=True).attentions[1].mean(1)
    model, probe = tiny_llava(), Probe()
    vtprune.apply(model, probe)
    cache = model(input_ids=first[None], use_cache=True).past_key_values
    model(input_ids=second[None], pixel_values=picture(), past_key_values=cache)
    torch.testing.assert_close(probe.seen[0].attention[0], maps[0, -1][both[0] == 1], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager", "vtprune"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_queries_and_keys(eager, attention, use_cache):
    """Column sums of the layer's attention, from all that it works on."""
    rows = [prompt(5, 0, 7, seed=1), prompt(2, 0, 3, seed=2), prompt(3, 0, 2, 0, 4, seed=4)]
    x = {**batch(*rows), "pixel_values": picture(4)}
    maps = eager(**x, output_attentions=True, use_cache=False).attentions[1].mean(1)  # (rows, queries, keys)
    model, probe = tiny_llava(attention=attention), Probe(signal="queries_keys")
    vtprune.apply(model, probe)
    model(**x, use_cache=use_cache)
    (tokens,) = probe.seen
    assert tokens.attention is None
    assert tokens.hidden is None
    mass = received(tokens.queries_keys)
    for i in range(3):
        there = x["attention_mask"][i].bool()
        visual = x["input_ids"][i] == 1
        expected = maps[i][there].sum(0)
        torch.testing.assert_close(mass[i][there], expected[there], **CLOSE)
        at = tokens.queries_keys.at[i][tokens.valid[i]]
        assert at.tolist() == visual.nonzero()[:, 0].tolist()


def received(pairs):
    """Attention that each slot receives, summed over all rows that are no padding."""
    return attention_column_mass(
        pairs.queries,
        pairs.keys,
        scale=pairs.scale,
        causal=True,
        key_valid=pairs.valid,
        row_mask=None if pairs.valid is None else pairs.valid[:, -pairs.queries.shape[2] :],
        normalise="sum",
    )


@torch.no_grad()
def test_queries_and_keys_in_a_second_turn(eager):
    """The keys of the kept cache come first."""
    first, second = prompt(4, seed=1), prompt(2, 0, 3, seed=2)
    both = torch.cat((first, second))[None]
    maps = eager(input_ids=both, pixel_values=picture(), output_attentions=True).attentions[1].mean(1)
    model, probe = tiny_llava(), Probe(signal="queries_keys")
    vtprune.apply(model, probe)
    cache = model(input_ids=first[None], use_cache=True).past_key_values
    model(input_ids=second[None], pixel_values=picture(), past_key_values=cache)
    pairs = probe.seen[0].queries_keys
    assert pairs.queries.shape[2] == len(second)
    torch.testing.assert_close(received(pairs)[0], maps[0, len(first) :].sum(0), **CLOSE)


@torch.no_grad()
def test_queries_and_keys_after_a_removal_at_the_same_layer():
    model, probe = tiny_llava(), Probe(signal="queries_keys")
    vtprune.apply(model, ["fastv:layer=2,keep=0.5", probe])
    ids = prompt(5, 0, 7)
    model(**batch(ids), pixel_values=picture())
    (tokens,) = probe.seen
    left = vtprune.report(model).pictures[0].kept
    visual = (ids == 1).nonzero()[:, 0]
    assert tokens.queries_keys.at[0].tolist() == visual[list(left)].tolist()
    assert tokens.queries_keys.queries.shape[2] == len(ids)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_encoder_attention(tower, attention):
    """From [CLS], over the layer whose output feeds the projector; without [CLS] the mean over all queries."""
    pixels = picture(2)
    model = tiny_llava(tower, attention="eager")
    maps = model.model.vision_tower(pixels, output_attentions=True).attentions
    used = maps[2].mean(1)[:, 0, 1:] if tower == "clip" else maps[3].mean((1, 2))
    model, probe = tiny_llava(tower, attention), Probe(signal="encoder_attention")
    vtprune.apply(model, probe)
    model(**batch(prompt(5, 0, 7), prompt(2, 0, 3)), pixel_values=pixels)
    torch.testing.assert_close(probe.seen[0].attention, used, **CLOSE)


@torch.no_grad()
def test_encoder_attention_after_merging_adds_up():
    """A merged token has received what its parts received."""
    model, probe = tiny_llava(), Probe(signal="encoder_attention")
    vtprune.apply(model, ["tome:keep=0.5", probe])
    model(**batch(prompt(5, 0, 7)), pixel_values=picture())
    (pictures,) = probe.seen
    assert pictures.grid is None
    assert pictures.attention.shape == (1, TOKENS // 2)
    assert 0 < float(pictures.attention.sum()) < 1


@torch.no_grad()
def test_later_stages_see_only_what_earlier_ones_kept():
    model, probe = tiny_llava(), Probe(signal="encoder_attention")
    vtprune.apply(model, ["divprune:keep=10", probe])
    model(**batch(prompt(5, 0, 7), prompt(2, 0, 3)), pixel_values=picture(2))
    assert [p.encoded.shape[:2] for p in probe.seen] == [(2, 10)]


@torch.no_grad()
def test_ragged_decisions():
    """Pictures of one batch may keep different numbers of tokens; later stages see each with its own number."""

    @dataclasses.dataclass(frozen=True)
    class Ragged(Probe):
        def stages(self, model):
            return [Stage(Place.ENCODER_OUTPUT, self.first), Stage(Place.ENCODER_OUTPUT, self.look)]

        def first(self, pictures):
            numbers = torch.arange(pictures.tokens)
            limits = torch.tensor([5, 9])[: len(pictures.encoded), None]
            return Keep(numbers < limits)

    model, probe = tiny_llava(), Ragged()
    vtprune.apply(model, [probe, "fastv:layer=2,keep=0.5"])
    rows = [prompt(5, 0, 7, seed=1), prompt(2, 0, 3, seed=2)]
    logits = model(**batch(*rows), pixel_values=picture(2)).logits
    assert [p.encoded.shape[:2] for p in probe.seen] == [(1, 5), (1, 9)]
    assert [len(p.entered) for p in vtprune.report(model).pictures] == [5, 9]
    assert [len(p.kept) for p in vtprune.report(model).pictures] == [2, 4]
    alone = model(input_ids=rows[0][None], pixel_values=picture(2)[:1]).logits
    torch.testing.assert_close(logits[0, -1], alone[0, -1], atol=1e-4, rtol=1e-4)


def test_unknown_signals_are_refused():
    with pytest.raises(ValueError, match="probe asks for gaze"):
        vtprune.apply(tiny_llava(), Probe(signal="gaze"))
    with pytest.raises(ValueError, match="layer before"):
        vtprune.apply(tiny_llava(), Probe(layer=0))
