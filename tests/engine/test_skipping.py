"""Tokens that pass by decoder layers: what the model computes is what a plain loop over its layers computes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.asking import further_turn
from tests.families import FAMILIES, IMAGE, SORTS
from tests.layer_loop import Rule, check_answer, prompts
from tests.tiny import BEAMS
from vtprune.methods import Keep, Method, Place, Stage

CLOSE = dict(atol=1e-4, rtol=1e-4)
LAYERS = (1, 3)


@dataclasses.dataclass(frozen=True)
class Passing(Method):
    """All but every third token of a picture, from its `first` on, pass by."""

    skips: tuple = LAYERS
    first: int = 1
    name = "passing"
    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)

    def stages(self, model):
        return [Stage(Place.ENCODER_OUTPUT, self.decide, skips=self.skips)]

    def decide(self, pictures):
        number = torch.arange(pictures.tokens)
        return Keep(((number % 3 == self.first) & (number > 3)).expand(len(pictures.encoded), -1))


@pytest.fixture(params=SORTS)
def kind(request):
    return request.param, "sdpa"


def runs_of(report, row):
    """Bool (slots,): what runs in all layers, from the layout alone."""
    runs = torch.ones(len(row.ids), dtype=torch.bool)
    visual = row.visual.nonzero().squeeze(1)
    start = 0
    for picture in report.pictures:
        in_maps = sorted(token for one in picture.maps for token in one.tokens)
        chosen = [token for i, token in enumerate(in_maps) if i % 3 == 1 and i > 3]
        here = torch.zeros(picture.tokens, dtype=torch.bool)
        here[chosen] = True
        newlines = sorted(set(range(picture.tokens)) - set(in_maps))
        begins = {one.tokens[0] for one in picture.maps}
        for newline in newlines:
            line = newline - 1
            while line >= 0 and line not in newlines:
                here[newline] |= here[line]
                if line in begins:
                    break
                line -= 1
        runs[visual[start : start + picture.tokens]] = here
        start += picture.tokens
    return runs


class Passed(Rule):
    """Slots that do not run in a layer are seen by nobody there and stay as they are."""

    def __init__(self, visual, runs):
        super().__init__(visual)
        self.runs = torch.cat((runs, torch.ones(self.length - len(runs), dtype=torch.bool)))

    def given(self, layer):
        return self.runs if layer in LAYERS else super().given(layer)

    def sees(self, layer, head):
        return super().sees(layer, head) & self.given(layer)

    def channels(self, layer, most):
        return torch.where(self.given(layer), most, 0)


@torch.no_grad()
def test_prefill_and_decoding_equal_the_plain_loop(model, family):
    new = 5
    for row in prompts(family):

        def passed(visual, report):
            return Passed(visual, runs_of(report, row))  # noqa: B023

        report, (_, _, cache) = check_answer(model, family, row, Passing(), passed, new)
        left = int(runs_of(report, row).sum())
        lengths = [left if i in LAYERS else len(row.ids) for i in range(5)]
        assert [layer.keys.shape[2] for layer in cache.layers] == [n + new - 1 for n in lengths]
        assert cache.get_seq_length() == len(row.ids) + new - 1
        assert report.visual_tokens_after == report.visual_tokens_before
        assert [(p.place, p.layer) for p in report.places] == [("decoder layer", 1), ("decoder layer", 3)]
        assert {(p.tokens_before, p.tokens_after) for p in report.places} == {(row.tokens, left - row.text)}
        assert report.prefill_flops_after < report.prefill_flops_before
        assert report.kv_bytes_after < report.kv_bytes_before


@torch.no_grad()
def test_padded_batches_and_beams_equal_their_rows_alone(model, family):
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(9, seed=2), *prompts(family)[1:]]
    x, settings = family.inputs(*rows), dict(max_new_tokens=5, do_sample=False)
    with vtprune.applied(model, Passing()):
        together = model(**x).logits[:, -1]
        beams = model.generate(**x, **settings, num_beams=BEAMS)[:, x["input_ids"].shape[1] :]
        without = model.generate(**x, **settings, use_cache=False)[:, x["input_ids"].shape[1] :]
        assert torch.equal(model.generate(**x, **settings)[:, x["input_ids"].shape[1] :], without)
        for i, row in enumerate(rows):
            alone = family.inputs(row)
            torch.testing.assert_close(together[i], model(**alone).logits[0, -1], **CLOSE)
            assert torch.equal(beams[i], model.generate(**alone, **settings, num_beams=BEAMS)[0, len(row.ids) :])


@torch.no_grad()
def test_a_second_turn_equals_the_whole_conversation(model, family):
    first, more = family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 4, seed=3)
    with vtprune.applied(model, Passing()):
        cache = model(**family.inputs(first), use_cache=True).past_key_values
        logits = model(**further_turn(model, family, first, more), past_key_values=cache).logits
        expected = model(**family.inputs(first.then(more))).logits
        torch.testing.assert_close(logits[0, -1], expected[0, -1], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("skips", [(1,), (4,), (2, 3, 4), (1, 2, 3, 4)])
def test_beside_methods_that_remove_tokens(built, skips):
    """In chains with divprune before and exit behind, batches still equal their rows alone."""
    family, model = FAMILIES["qwen2_5_vl"], built["qwen2_5_vl", "sdpa"]
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(3, IMAGE, 2, IMAGE, 6, seed=1), family.row(4)]
    for chain in (
        [("divprune", {"keep": 0.6}), Passing(skips)],
        [Passing(skips), ("divprune", {"keep": 0.6})],
        [Passing(skips), ("exit", {"layer": 3})],
        [Passing(skips), ("exit", {"layer": 2})],
    ):
        x = family.inputs(*rows)
        with vtprune.applied(model, chain):
            answers = model.generate(**x, max_new_tokens=5, do_sample=False)[:, x["input_ids"].shape[1] :]
            beams = model.generate(**x, max_new_tokens=5, do_sample=False, num_beams=2)[:, x["input_ids"].shape[1] :]
            for i, row in enumerate(rows):
                alone = family.inputs(row)
                answer = model.generate(**alone, max_new_tokens=5, do_sample=False)[0, len(row.ids) :]
                assert torch.equal(answers[i], answer)
                answer = model.generate(**alone, max_new_tokens=5, do_sample=False, use_cache=False)
                assert torch.equal(answers[i], answer[0, len(row.ids) :])
                answer = model.generate(**alone, max_new_tokens=5, do_sample=False, num_beams=2)
                assert torch.equal(beams[i], answer[0, len(row.ids) :])


@torch.no_grad()
def test_later_pictures_may_use_another_method(built):
    """A cache that divprune left is divided anew among layers that tokens pass by and others."""
    family, model = FAMILIES["llava-clip"], built["llava-clip", "sdpa"]
    first, more = family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 4, seed=3)
    with vtprune.applied(model, "divprune", keep=0.5, positions="original"):
        cache = model(**family.inputs(first), use_cache=True).past_key_values
    with vtprune.applied(model, Passing()):
        model(**further_turn(model, family, first, more), past_key_values=cache)
        held = [layer.keys.shape[2] for layer in cache.layers]
    assert held == [30 + 42, 30 + 17, 30 + 42, 30 + 17, 30 + 42]
    assert {layer.get_seq_length() for layer in cache.layers} == {48 + 42}


def test_gradients_flow_around_and_through(built):
    family, model = FAMILIES["qwen2_vl"], built["qwen2_vl", "sdpa"]
    x = family.inputs(family.row(2, IMAGE, 3))
    x["pixel_values"].requires_grad_()
    with vtprune.applied(model, Passing()):
        model(**x).logits.sum().backward()
    assert (x["pixel_values"].grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([Passing(), Passing(first=2)], "both let tokens pass by"),
        ([Passing((2,)), ("fastv", {"layer": 3, "keep": 0.5})], "fastv asks for signals of decoder layers that"),
        ([("showui", {"skip_layers": (5,)})], "skip_layers must be a layer from 1 to 4"),
    ],
)
def test_refuses(built, chain, message):
    with pytest.raises(ValueError, match=message):
        vtprune.apply(built["llava-clip", "sdpa"], chain)


@torch.no_grad()
def test_showui_as_in_the_paper(built):
    family, model = FAMILIES["qwen2_vl"], built["qwen2_vl", "sdpa"]
    row = family.row(5, IMAGE, 7)
    with vtprune.applied(model, "showui", keep=0.3, threshold=70.0):
        model(**family.inputs(row))
        left = vtprune.report(model).visual_tokens_after
    with vtprune.applied(model, "showui", keep=0.3, threshold=70.0, skip_layers=(1, 3)):
        model(**family.inputs(row))
        report = vtprune.report(model)
    assert [(p.layer, p.tokens_before, p.tokens_after) for p in report.places] == [(1, 36, left), (3, 36, left)]
    assert report.visual_tokens_after == 36 > left
