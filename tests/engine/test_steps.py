"""Steps of a report: which tokens of a picture are left behind every place."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import vtprune
from tests.cases import over, paths_everywhere
from tests.engine.test_costs import Halving
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.reference import decisions
from vtprune.methods.base import Keep, Method, Place, Stage
from vtprune.report import runs_of

ENCODER = (Place.ENCODER_INPUT, Place.ENCODER_LAYER, Place.ENCODER_OUTPUT)
CHAINS = {
    "merged, then chosen": ["tome:keep=0.6", "random:keep=0.7", "fastv:layer=2,keep=0.5"],
    "merged twice": ["tome:keep=0.6", "visionzip:keep=0.5", "pyramiddrop"],
    "made smaller": ["resize:keep=0.5", "random:keep=0.6", "exit:layer=3"],
    "passing by": ["showui:keep=0.5,threshold=70.0,skip_layers=1", "fastv:layer=3,keep=0.5"],
    "less work": ["random:keep=0.6", "fastv:layer=2,keep=0.5", "ee_mllm"],
    "looking ahead": ["random:keep=0.7", "gemfilter:keep=0.5", "snapkv:keep=0.5"],
    "recycled": ["random:keep=0.8", "sparsevlm:keep=0.3,recycle=0.4"],
    "merged over time": ["holitom:keep=0.7,tau=0.0,inner_layer=2", "snapkv:keep=0.5"],
    "hidden": ["random:keep=0.6", "fastv:layer=2,keep=0.5,hide=true"],
    "cache": ["random:keep=0.6", "fastv:layer=2,keep=0.5", "snapkv:keep=0.4"],
    "few bits": ["fastv:layer=2,keep=0.5", "zipcache"],
}


def run(model, x):
    """The report of a prefill, and the chain of methods."""
    with torch.no_grad():
        model(**x, use_cache=True)
    return vtprune.report(model), vtprune.api._engines[model].chain


def rows(family):
    """A batch of unlike prompts, with two pictures in one row; in another a video, where a family takes some."""
    last = (3, VIDEO, 4, IMAGE, 6) if VIDEO in family.kinds else (4, IMAGE, 6)
    return family.inputs(family.row(5, IMAGE, 7, IMAGE, 3, seed=1), family.row(*last, seed=2))


def check(report, chain, one_to_one):
    """What must hold of the steps of any report; `one_to_one`: whether each patch is one token of the prompt."""
    lines = report.summary()
    for picture in report.pictures:
        assert [(step.where, step.method) for step in picture.steps] == [(where, x.method) for where, x in lines]
        steps = [(step, place.place) for step, (_, place) in zip(picture.steps, lines, strict=True)]
        before = [step for step, place in steps if place in ENCODER]
        between = [step for step, place in steps if place == Place.DECODER_LAYER]
        if before:
            assert before[-1].kept == picture.entered or chain.shares
        if steps:
            assert picture.owner in {step.owner for step, _ in steps}
        if chain.skipping is None:
            last = between[-1].kept if between else picture.entered
            assert last == picture.kept
            for ones in (before, between):
                for earlier, later in itertools.pairwise(ones):
                    assert set(later.kept) <= set(earlier.kept)
        for step, _ in steps:
            assert set(step.kept) <= set(range(picture.tokens))
            assert list(step.kept) == sorted(step.kept)
            if step.owner is not None:
                assert len(step.owner) == picture.tokens
                assert [step.owner[token] for token in step.owner] == list(step.owner)
                assert [step.owner[token] for token in step.kept] == list(step.kept)
            if step.held is not None:
                assert len(step.held) == picture.tokens
                assert all(0 <= share <= (token in step.kept) for token, share in enumerate(step.held))
    for i, (_, place) in enumerate(lines):
        steps = [picture.steps[i] for picture in report.pictures]
        # Stages of the encoder count what they were given, patches of one call say; those at the door all tokens.
        in_encoder = place.place in ENCODER[:2] or (place.place == Place.ENCODER_OUTPUT and chain.projector_stages)
        counts_alike = place.place == Place.ENCODER_INPUT or one_to_one
        if not in_encoder or (counts_alike and len({picture.kind for picture in report.pictures}) == 1):
            assert sum(step.tokens_before for step in steps) == place.tokens_before
            if place.place != Place.CACHE:
                assert sum(step.tokens_after for step in steps) == place.tokens_after
            elif steps[0].held is not None and not any(stage.stage.text for stage in chain.cache_stages):
                assert sum(sum(step.held) for step in steps) == pytest.approx(place.tokens_after)


@over(paths_everywhere("steps"))
def test_every_method(pruned, family):
    report, chain = run(pruned, rows(family))
    check(report, chain, family.name.startswith("llava-"))


@pytest.mark.parametrize("chain", CHAINS)
def test_chains(model, family, chain):
    try:
        vtprune.apply(model, CHAINS[chain])
    except ValueError as refused:
        pytest.skip(str(refused))
    report, applied = run(model, rows(family))
    assert len(report.summary()) >= 2
    check(report, applied, family.name.startswith("llava-"))


def test_by_hand(built):
    """Neighbours are merged twice, four of the nine that are left stay, and leave in the end."""
    model, family = built["llava-clip", "sdpa"], FAMILIES["llava-clip"]
    with vtprune.applied(model, [Halving(), "uniform:keep=0.5", "exit:layer=3"]):
        report, _ = run(model, family.inputs(family.row(5, IMAGE, 7)))
    (picture,) = report.pictures
    pairs, fours = (tuple(token // n * n for token in range(36)) for n in (2, 4))
    assert [(s.where, s.method, s.tokens_before, s.kept, s.owner) for s in picture.steps] == [
        ("encoder layer 0", "halving", 36, tuple(range(0, 36, 2)), pairs),
        ("encoder layer 2", "halving", 18, tuple(range(0, 36, 4)), fours),
        ("encoder output", "uniform", 9, (4, 12, 20, 28), fours),
        ("decoder layer 3", "exit", 4, (), fours),
    ]


def test_patches_of_several_tokens(built):
    """No two tokens of four patches have become the same, though a quarter of the patches is left."""
    model, family = built["internvl", "sdpa"], FAMILIES["internvl"]
    with vtprune.applied(model, Halving()):
        report, _ = run(model, family.inputs(family.row(5, IMAGE, 7, seed=1)))
    (picture,) = report.pictures
    assert [place.tokens_after for place in report.places] == [picture.tokens * 2, picture.tokens]
    assert [step.kept for step in picture.steps] == [tuple(range(picture.tokens))] * 2


@pytest.mark.parametrize("chain", [["pyramiddrop"], ["random:keep=0.6", "fastv:layer=2,keep=0.5"]])
def test_cuts_between_decoder_layers(built, chain):
    """As a loop over the layers needs them, which reads the same masks in its own way."""
    model, family = built["llava_next", "sdpa"], FAMILIES["llava_next"]
    several = [family.row(5, IMAGE, 7, IMAGE, 3, seed=1), family.row(4, IMAGE, 6, seed=2)]
    with vtprune.applied(model, chain):
        report, _ = run(model, family.inputs(*several))
        found = [decisions(model, row, number).cuts for number, row in enumerate(several)]
    assert all(found)
    for number, (row, cuts) in enumerate(zip(several, found, strict=True)):
        own = [picture for picture in report.pictures if picture.row == number]
        for i, places in enumerate(runs_of(report.places)):
            if places[-1].place == Place.DECODER_LAYER:
                first, kept = 0, []
                for picture in own:
                    kept += [first + token for token in picture.steps[i].kept]
                    first += picture.tokens
                assert kept == cuts[places[-1].layer][row.visual].nonzero().squeeze(1).tolist()


def test_what_caches_hold(built):
    """Keys of the whole cache are found again in the one that lost some."""
    model, family = built["llava-clip", "sdpa"], FAMILIES["llava-clip"]
    row = family.row(5, IMAGE, 7)
    x, visual = family.inputs(row), row.visual.nonzero().squeeze(1)
    with torch.no_grad():
        whole = model(**x, use_cache=True).past_key_values
        with vtprune.applied(model, "snapkv:keep=0.4"):
            left = model(**x, use_cache=True).past_key_values
            report = vtprune.report(model)
    shares = []
    for before, after in zip(whole.layers, left.layers, strict=True):
        same = (before.keys[0, :, visual, None] == after.keys[0, :, None]).all(-1)  # (heads, tokens, entries)
        shares.append(same.any(-1).float().mean(0))
    (step,) = report.pictures[0].steps
    assert step.where == "decoder cache 0 to 4"
    assert step.held == pytest.approx(torch.stack(shares).mean(0).tolist())
    assert 0 < min(share for share in step.held if share) < 1
    assert (step.tokens_before, step.tokens_after, len(step.kept)) == (36, 14, 36)


@dataclasses.dataclass(frozen=True)
class Folding(Method):
    """Between decoder layers, every odd candidate becomes part of the one before it; at the last one nothing does."""

    name = "folding"
    kind = "merging"
    places = (Place.DECODER_LAYER,)

    def stages(self, model):
        return [Stage(Place.DECODER_LAYER, self.decide, (2, 3), frozenset({"hidden"}), mixes=True)]

    def decide(self, tokens):
        number = torch.arange(tokens.valid.shape[1]).expand(tokens.valid.shape)
        begin = (~tokens.valid).sum(1, keepdim=True)  # padding comes first
        owner = torch.where(tokens.valid, (number - begin) // 2 * 2 + begin, number)
        return Keep(owner == number, lambda x: x, owner)


def test_merged_between_decoder_layers(built):
    """Four tokens in a row become one, in two layers, also across the pictures of a row; layer 1 sees them all."""
    model, family = built["llava-clip", "sdpa"], FAMILIES["llava-clip"]
    with vtprune.applied(model, ["uniform:keep=0.75", Folding(), "ee_mllm:layer=1"]):
        report, _ = run(model, family.inputs(family.row(5, IMAGE, 7), family.row(2, IMAGE, 3, IMAGE, 4)))
    alone, first, second = report.pictures
    left = alone.steps[0].kept
    assert len(left) == 27
    fours = dict(zip(left, (left[i // 4 * 4] for i in range(27)), strict=True))
    for picture in (alone, first):
        assert picture.owner == tuple(fours.get(token, token) for token in range(36))
        assert picture.kept == left[::4]
    # The 28th token of the row has become part of the 27th, in the other picture: it stands for itself, and is gone.
    fours = {left[i]: left[(27 + i) // 4 * 4 - 27] for i in range(1, 27)}
    assert second.owner == tuple(fours.get(token, token) for token in range(36))
    assert second.kept == tuple(sorted(set(fours.values())))
    for picture in report.pictures:
        owners = {step.where: step.owner for step in picture.steps}
        assert owners["decoder attention 1"] is None
        assert owners["decoder attention 2"] not in (None, picture.owner)  # merged once by then
        assert owners["decoder layer 2 to 3"] == owners["decoder attention 3 to 4"] == picture.owner


def test_inside_layers_behind_a_cut(built):
    """What layers 0 and 1 run on is not what layer 2 and those behind it do."""
    model, family = built["llava-clip", "sdpa"], FAMILIES["llava-clip"]
    with vtprune.applied(model, ["fastv:layer=2,keep=0.5", "ee_mllm:layer=1"]):
        report, _ = run(model, family.inputs(family.row(5, IMAGE, 7)))
    (picture,) = report.pictures
    fastv, *inside = picture.steps
    assert [(step.where, len(step.kept)) for step in inside] == [
        ("decoder attention 1", 36),
        ("decoder attention 2 to 4", 18),
    ]
    assert inside[1].kept == fastv.kept == picture.kept


def test_hidden_tokens(built):
    """All of them stay, half of them unseen."""
    model, family = built["llava-clip", "sdpa"], FAMILIES["llava-clip"]
    with vtprune.applied(model, "fastv:layer=2,keep=0.5,hide=true"):
        report, _ = run(model, family.inputs(family.row(5, IMAGE, 7)))
    (step,) = report.pictures[0].steps
    assert (step.kept, sum(step.held)) == (tuple(range(36)), 18)
