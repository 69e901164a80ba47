"""Stages at the cache: what leaves it is as if later queries could not see it, and nothing else changes."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import weakref

import pytest
import torch
from torch import Tensor

import vtprune
from tests.asking import answer, check_padding_and_beams
from tests.cases import EAGER
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.reference import NEVER, Decisions, bare_run, decisions, feeding, positions_of, whole
from vtprune.methods import Keep, Method, Place, Stage
from vtprune.methods._entries import age, best, received

CLOSE = dict(atol=1e-4, rtol=1e-4)
KINDS = [(name, "sdpa") for name in FAMILIES] + [(name, "eager") for name in EAGER] + [("internvl", "vtprune")]


def scattered(candidate: Tensor, layer: int) -> Tensor:
    """Scores without rhyme or reason, other ones in every head and layer, the same with and without padding."""
    head = torch.arange(candidate.shape[1])[:, None]
    return torch.sin(12.9 * age(candidate) + 7.3 * head + 3.1 * layer)


@dataclasses.dataclass(frozen=True)
class Toy(Method):
    """Keeps a share of the visual entries, other ones in every head."""

    name = "toy"
    kind = "cache"
    places = (Place.CACHE,)

    keep: float | int = 0.4
    layers: tuple[int, ...] = (0, 2, 3, 4)
    signal: str = "closing_queries"
    seen: list = dataclasses.field(default_factory=list)

    def stages(self, model):
        return [Stage(Place.CACHE, self.decide, self.layers, frozenset({self.signal}))]

    def decide(self, entries):
        self.seen.append(entries)
        return Keep(best(scattered(entries.candidate, entries.layer), entries.counts(self.keep), entries.candidate))


@dataclasses.dataclass(frozen=True)
class Forgetful(Method):
    """Keeps so many entries, of text too, at every step, and writes down which they are."""

    name = "forgetful"
    kind = "cache"
    places = (Place.CACHE,)

    keep: int = 12
    text: bool = True
    log: dict = dataclasses.field(default_factory=dict)  # layer -> slots kept after each call, (rows, kv_heads, n)

    def stages(self, model):
        return [Stage(Place.CACHE, self.decide, (1, 4), frozenset({"all_queries"}), text=self.text, decodes=True)]

    def decide(self, entries):
        slot = entries.memory.get("slot_of_entries", torch.zeros(entries.candidate.shape, dtype=torch.long))
        new = slot == 0
        before = entries.memory.get("tokens", torch.zeros(len(slot), dtype=torch.long))
        slot = torch.where(new, before[:, None, None] + new.long().cumsum(2), slot)
        entries.memory.update(slot_of_entries=slot, tokens=before + entries.queries.shape[2])
        mask = best(scattered(entries.candidate, entries.layer), entries.counts(self.keep), entries.candidate)
        stays = (mask | ~entries.candidate) & entries.valid[:, None]
        self.log.setdefault(entries.layer, []).append(
            [[s[k] - 1 for s, k in zip(*x, strict=True)] for x in zip(slot, stays, strict=True)]
        )
        return Keep(mask)


def prompts(family):
    found = [family.row(5, IMAGE, 7), family.row(3, IMAGE, 2, IMAGE, 6, seed=1)]
    if VIDEO in family.kinds:
        found.append(family.row(2, IMAGE, 3, VIDEO, 4, seed=2))
    return found


@torch.no_grad()
@pytest.mark.parametrize(("name", "attention"), KINDS)
@pytest.mark.parametrize("chain", ["", "random:keep=0.5", "fastv:layer=2,keep=0.5"])
def test_equals_hiding_from_later_queries(name, attention, chain):
    family, new = FAMILIES[name], 5
    model = family.model(attention)
    for row in prompts(family):
        toy = Toy()
        with vtprune.applied(model, [chain, toy] if chain else toy), feeding(model) as seen:
            tokens, logits, cache = answer(model, family.inputs(row), new)
            decided = decisions(model, row)
            report = vtprune.report(model)
        assert sorted(decided.evicted) == [0, 2, 3, 4]
        conversation = row.then(tokens[0])
        everything = whole(model, conversation, [(decided.entered.nonzero().squeeze(1), seen[0])])
        positions = positions_of(model, family, conversation)
        expected, _ = bare_run(model, everything, positions, decided.extend(new))
        torch.testing.assert_close(logits, expected[:, -new - 1 : -1], **CLOSE)
        without = dataclasses.replace(decided, evicted={}).extend(new)
        assert (bare_run(model, everything, positions, without)[0][:, -2] - logits[:, -1]).abs().max() > 1e-3
        # As many bytes leave as entries do.
        assert cache.get_seq_length() == len(conversation.ids) - 1
        for entries in toy.seen:
            gone = entries.candidate[0, 0].sum() - entries.counts(0.4)[0]
            held = cache.layers[entries.layer].keys
            assert held.shape[2] == entries.keys.shape[2] - gone + new - 1
        assert report.kv_bytes_after < report.kv_bytes_before
        places = [p for p in report.places if p.method == "toy"]
        assert [p.layer for p in places] == [0, 2, 3, 4]
        assert all(p.place == "decoder cache" and p.tokens_after < p.tokens_before for p in places)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", [Toy(), Forgetful()], ids=lambda x: x.name)
def test_padding_and_beams(name, method):
    with vtprune.applied(FAMILIES[name].model(), method) as model:
        check_padding_and_beams(model, FAMILIES[name])


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_further_turns(name):
    """A second turn with a picture of its own evicts from that picture, a third one without pictures does not."""
    family = FAMILIES[name]
    model = family.model()
    first, second, third = family.row(5, IMAGE, 7), family.row(2, IMAGE, 4, seed=1), family.row(3, seed=2)
    conversation = first.then(second, third)
    positions = positions_of(model, family, conversation)
    ends = [0, len(first.ids), len(first.ids) + len(second.ids), len(conversation.ids)]
    with vtprune.applied(model, Toy()), feeding(model) as seen:
        cache, found, decided = None, [], []
        for row, (start, end) in zip((first, second, third), itertools.pairwise(ends), strict=True):
            x = {k: v for k, v in family.inputs(row).items() if k != "attention_mask"}
            given = positions[:, None, start:end] if len(positions) > 1 else positions[:, start:end]
            out = model(**x, past_key_values=cache, position_ids=given, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
            if row.items:
                decided.append(decisions(model, row))
        cache.crop(-2)
        assert cache.get_seq_length() == ends[-1] - 2
        with pytest.raises(ValueError, match="cannot crop"):
            cache.crop(-len(second.ids) - 2)
    parts = zip(itertools.pairwise(ends[:-1]), seen[:-1], strict=True)
    fed = whole(model, conversation, [(torch.arange(a, b), x) for (a, b), x in parts])
    expected, _ = bare_run(model, fed, positions, decided[0].extend(decided[1], len(third.ids)))
    torch.testing.assert_close(torch.cat(found, 1), expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize(("name", "attention"), KINDS)
@pytest.mark.parametrize("text", [True, False])
def test_evicting_at_every_step_equals_hiding(name, attention, text):
    """Entries of text leave too, step by step and turn by turn; what a method remembers follows them."""
    family, new = FAMILIES[name], 6
    model = family.model(attention)
    row, more, second = family.row(5, IMAGE, 7), family.row(4, seed=5), family.row(2, IMAGE, 3, seed=1)
    method = Forgetful(text=text)
    with vtprune.applied(model, method), feeding(model) as seen:
        tokens, logits, cache = answer(model, family.inputs(row), new)
        ends = [len(row.ids) + i for i in range(new)]
        conversation = row.then(tokens[0, :-1], more, second)
        positions = positions_of(model, family, conversation)
        later = []
        for turn in (more, second):
            x = {k: v for k, v in family.inputs(turn).items() if k != "attention_mask"}
            ends.append(ends[-1] + len(turn.ids))
            here = positions[:, ends[-2] : ends[-1]]
            given = here[:, None] if len(positions) > 1 else here
            later.append(model(**x, past_key_values=cache, position_ids=given, use_cache=True).logits)
    length, evicted = len(conversation.ids), {}
    for layer, calls in method.log.items():
        since = torch.full((len(calls[0][0]), length), NEVER)
        for end, kept in zip(ends, calls, strict=True):
            for head, slots in enumerate(kept[0]):
                gone = torch.isin(torch.arange(end), slots, invert=True) & (since[head, :end] == NEVER)
                since[head, :end][gone] = end
        evicted[layer] = since
        assert (since < NEVER).sum(1).tolist() == [length - cache.layers[layer].keys.shape[2]] * len(since)
        assert not text or cache.layers[layer].keys.shape[2] == method.keep
    everything = torch.ones(length, dtype=torch.bool)
    decided = Decisions(everything, {}, torch.full((length,), -1), False, evicted=evicted)
    parts = [(torch.arange(len(row.ids)), seen[0]), (torch.arange(ends[-2], ends[-1]), seen[-1])]
    expected, _ = bare_run(model, whole(model, conversation, parts), positions, decided)
    found = torch.cat((logits, *later), 1)
    torch.testing.assert_close(found, expected[:, -found.shape[1] :], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("method", [Toy(), Forgetful()])
def test_without_pictures_nothing_happens(method):
    family = FAMILIES["llava-clip"]
    model = family.model()
    x = family.inputs(family.row(9))
    expected = answer(model, x, 4)
    with vtprune.applied(model, method):
        found = answer(model, x, 4)
    assert torch.equal(found[1], expected[1])
    assert found[2].layers[1].keys.shape == expected[2].layers[1].keys.shape


@torch.no_grad()
def test_report_says_it_once():
    family = FAMILIES["llava-clip"]
    with vtprune.applied(family.model(), ["fastv:layer=2,keep=0.5", "h2o:keep=0.25"]) as model:
        model(**family.inputs(family.row(5, IMAGE, 7)))
        said = str(vtprune.report(model)).splitlines()
        assert [line.split(", saves")[0] for line in said[1:4]] == [
            "  decoder layer 2: fastv, 36 -> 18",
            "  decoder cache 0 to 1: h2o, 36 -> 9",
            "  decoder cache 2 to 4: h2o, 18 -> 4",
        ]
        assert said[1].endswith("GFLOPs (20%) and 10 KiB (22%)")
        assert said[2].endswith("saves 10 KiB (22%)")
        bytes_per_entry = 2 * 2 * 12 * 4
        assert (
            f"KV cache: {5 * 48 * bytes_per_entry / 1024:,.0f} -> {(2 * 21 + 3 * 16) * bytes_per_entry / 1024:,.0f}"
            in said[5]
        )
        model(**family.inputs(family.row(5, IMAGE, 7)), use_cache=False)
        assert "h2o removed nothing" in str(vtprune.report(model))


@torch.no_grad()
def test_what_is_shown():
    family = FAMILIES["qwen2_5_vl"]
    rows = [family.row(5, IMAGE, 7), family.row(2, IMAGE, 3, IMAGE, seed=3)]
    toy = Toy(layers=(1,))
    with vtprune.applied(family.model(), toy) as model:
        model(**family.inputs(*rows))
    (shown,) = toy.seen
    sizes = [[item.tokens for item in row.items] for row in rows]
    assert shown.arrived.tolist() == [[*sizes[0], 0], sizes[1]]
    assert shown.candidate[:, 0].sum(1).tolist() == [sum(x) for x in sizes]
    assert torch.equal(shown.picture >= 0, shown.candidate[:, 0])
    assert [sorted(set(x.tolist())) for x in shown.picture] == [[-1, 0], [-1, 0, 1]]
    # The text after the picture, with the marker that ends it; a prompt that ends with one shows that marker.
    assert shown.query_valid.sum(1).tolist() == [8, 1]
    assert shown.query_at[:, -1].tolist() == [shown.keys.shape[2] - 1] * 2
    assert shown.queries.shape[1:3] == (4, 8)


@torch.no_grad()
@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("signal", ["closing_queries", "all_queries"])
def test_queries_and_keys_are_those_of_the_attention(name, signal):
    """Attention computed from what is shown equals the maps of eager attention, layer by layer, padding included."""
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 7), family.row(2, IMAGE, 3, IMAGE, 2, seed=3)]
    x = family.inputs(*rows)
    maps = family.model("eager")(**x, output_attentions=True).attentions
    toy = Toy(layers=(0, 1, 2, 3, 4), signal=signal)
    with vtprune.applied(family.model(), toy) as model:
        model(**x)
    for entries in toy.seen:
        total = torch.zeros(entries.keys.shape[:3])
        for r in range(len(rows)):
            asking = entries.query_at[r] if entries.query_valid is None else entries.query_at[r][entries.query_valid[r]]
            total[r] = maps[entries.layer][r][:, asking].unflatten(0, (2, -1)).sum((1, 2))
        torch.testing.assert_close(received(entries), total, **CLOSE)


def refusal(*methods):
    with pytest.raises((ValueError, TypeError)) as caught:
        vtprune.apply(FAMILIES["llava-clip"].model(), list(methods))
    return str(caught.value)


def test_refusals():
    assert "both evict from the cache of layer 4" in refusal(Toy(), Forgetful())
    assert "order of their places" in refusal(Toy(), "random")
    assert "available there: all_queries, closing_queries" in refusal(Toy(signal="hidden"))
    stage = Stage(Place.DECODER_LAYER, lambda x: None, (1,), text=True)
    assert "only a stage at the cache" in refusal(Fixed(stage))


@dataclasses.dataclass(frozen=True)
class Fixed(Method):
    """One stage, whatever it is."""

    name = "fixed"
    kind = "cache"
    places = (Place.CACHE,)

    stage: Stage

    def stages(self, model):
        return [self.stage]


@torch.no_grad()
@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (
            lambda x: Keep(x.candidate & (torch.arange(x.keys.shape[2]) % (2 + torch.arange(2)[:, None]) == 0)),
            "equally many",
        ),
        (lambda x: x.candidate, "must return a plain Keep"),
    ],
)
def test_wrong_decisions(decide, message):
    family = FAMILIES["llava-clip"]
    with vtprune.applied(family.model(), Fixed(Stage(Place.CACHE, decide, (1,)))) as model:  # noqa: SIM117
        with pytest.raises((ValueError, TypeError), match=message):
            model(**family.inputs(family.row(5, IMAGE, 7)))


@torch.no_grad()
@pytest.mark.parametrize("chain", [["divprune:keep=0.5"], ["fastv:layer=2,keep=0.5", "h2o:keep=0.5"]], ids=len)
def test_nobody_holds_the_cache_of_a_finished_request(chain):
    family = FAMILIES["llava-clip"]
    with vtprune.applied(family.model(), chain) as model:
        cache = answer(model, family.inputs(family.row(5, IMAGE, 7)), 3)[2]
        held = [weakref.ref(layer) for layer in cache.layers]
        del cache
        gc.collect()
        assert [layer() for layer in held] == [None] * 5


@torch.no_grad()
def test_histories_of_layers_that_tokens_pass_by_have_a_leader():
    """One of two layers with the same history gets one of its own; the other has to lead what was theirs."""
    family = FAMILIES["llava-clip"]
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, seed=3)]
    passing = ("showui", {"keep": 0.3, "threshold": 70.0, "skip_layers": (1, 3)})
    with vtprune.applied(family.model(), [passing, Toy(layers=(1,))]) as model:
        layers = answer(model, family.inputs(*rows), 2)[2].layers
        assert all(any(x.leads and x.rows is layer.rows for x in layers) for layer in layers)
