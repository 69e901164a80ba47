"""Hidden tokens: what everybody else computes is what they compute once these tokens have left, at their positions."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import IMAGE, SORTS, VIDEO
from tests.tiny import BEAMS, batch, picture, prompt, tiny_llava
from vtprune.methods import Keep, Method, Place, Stage
from vtprune.methods.fastv import FastV

CLOSE = dict(atol=1e-4, rtol=1e-4)
LEAVE = ("fastv", {"layer": 2, "keep": 0.3})
HIDE = ("fastv", {"layer": 2, "keep": 0.3, "hide": True})


@pytest.fixture(params=SORTS)
def kind(request):
    return request.param, "sdpa"


def rows_of(family):
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, IMAGE, 2, seed=2), family.row(9, seed=3)]
    return [*rows, family.row(2, VIDEO, 4, seed=5)] if VIDEO in family.kinds else rows


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager", "vtprune"])
def test_hiding_equals_removing(family, attention):
    """Prefill, decoding and beams, of a padded batch."""
    model = family.model()
    model.set_attn_implementation({"text_config": attention})
    x = family.inputs(*rows_of(family))
    with vtprune.applied(model, "fastv", keep=1.0):
        model.generate(**family.inputs(rows_of(family)[0]), max_new_tokens=2, do_sample=False, num_beams=2)
        costs = vtprune.report(model).prefill_flops_after
    logits, answers, beams = {}, {}, {}
    for name, method in (("leave", LEAVE), ("hide", HIDE)):
        with vtprune.applied(model, [method]):
            logits[name] = model(**x).logits[:, -2:]
            answers[name] = model.generate(**x, max_new_tokens=6, do_sample=False)
            settings = dict(max_new_tokens=4, do_sample=False, num_beams=2)
            beams[name] = model.generate(**family.inputs(rows_of(family)[0]), **settings)
            report = vtprune.report(model)
    torch.testing.assert_close(logits["hide"], logits["leave"], **CLOSE)
    assert torch.equal(answers["hide"], answers["leave"])
    assert torch.equal(beams["hide"], beams["leave"])
    assert report.visual_tokens_after == report.visual_tokens_before
    assert report.prefill_flops_after == costs
    assert report.kv_bytes_after == report.kv_bytes_before


@torch.no_grad()
def test_all_slots_are_there_and_those_that_stay_have_the_same_logits(model, family):
    row = family.row(5, IMAGE, 7)
    with vtprune.applied(model, [LEAVE]):
        short = model(**family.inputs(row)).logits
        kept = list(vtprune.report(model).pictures[0].kept)
    with vtprune.applied(model, [HIDE]):
        whole = model(**family.inputs(row)).logits
        (place,) = vtprune.report(model).places
    stays = ~row.visual
    stays[row.visual.nonzero()[:, 0][kept]] = True
    assert whole.shape[1] == len(row.ids)
    torch.testing.assert_close(whole[:, stays], short, **CLOSE)
    hidden = int((~stays).sum())
    assert place.note == f"{hidden} of them hidden from here on, which saves nothing"
    assert place.tokens_before == place.tokens_after == int(row.visual.sum())


@torch.no_grad()
def test_a_row_in_a_batch_is_as_alone_and_needs_no_cache(model, family):
    rows = rows_of(family)
    vtprune.apply(model, [HIDE])
    x = family.inputs(*rows)
    together = model(**x).logits[:, -1]
    torch.testing.assert_close(model(**x, use_cache=False).logits[:, -1], together, **CLOSE)
    for i, row in enumerate(rows):
        torch.testing.assert_close(model(**family.inputs(row)).logits[0, -1], together[i], **CLOSE)


@torch.no_grad()
def test_further_turns():
    """What was hidden stays hidden, text and pictures that come later do not; a cache can be cropped anywhere."""
    first, text, second = prompt(4, 0, 3, seed=1), prompt(6, seed=2), prompt(2, 0, 3, seed=3)
    model, found = tiny_llava(), {}
    for name, method in (("leave", LEAVE), ("hide", HIDE)):
        with vtprune.applied(model, [method]):
            cache = model(**batch(first), pixel_values=picture(), use_cache=True).past_key_values
            model(input_ids=text[None], past_key_values=cache)
            if name == "hide":
                cache.crop(-4)
                model(input_ids=text[2:][None], past_key_values=cache)
            out = model(input_ids=second[None], pixel_values=picture(seed=4), past_key_values=cache)
            steps = [model(input_ids=torch.tensor([[7 + i]]), past_key_values=cache).logits for i in range(3)]
            found[name] = torch.cat([out.logits[:, -2:], *steps], 1)
            assert cache.get_seq_length() == len(first) + len(text) + len(second) + 3
    torch.testing.assert_close(found["hide"], found["leave"], **CLOSE)


@torch.no_grad()
def test_keeping_everything_changes_no_bit():
    model = tiny_llava()
    x = {**batch(prompt(5, 0, 7), prompt(3, 0, 2, seed=1)), "pixel_values": picture(2)}
    expected = model.generate(**x, max_new_tokens=5, do_sample=False), model(**x).logits
    vtprune.apply(model, "fastv", keep=1.0, hide=True)
    assert torch.equal(model.generate(**x, max_new_tokens=5, do_sample=False), expected[0])
    assert torch.equal(model(**x).logits, expected[1])
    assert vtprune.report(model).places[0].note.startswith("0 of them")


@torch.no_grad()
def test_hiding_at_the_first_layer_equals_a_shorter_prompt():
    """Random tokens, of which there is no trace from the beginning on."""
    model = tiny_llava()
    x = {**batch(prompt(5, 0, 7)), "pixel_values": picture()}
    with vtprune.applied(model, Some()):
        expected = model.generate(**x, max_new_tokens=5, do_sample=False)
    with vtprune.applied(model, "fastv", layer=0, keep=0.3, hide=True):
        assert torch.equal(model.generate(**x, max_new_tokens=5, do_sample=False), expected)


@dataclasses.dataclass(frozen=True)
class Some(Method):
    """Lets tokens leave before the first layer, those that fastv hides there."""

    name = "some"
    kind = "pruning"
    places = (Place.DECODER_LAYER,)

    def stages(self, model):
        return [Stage(Place.DECODER_LAYER, self.decide, (0,))]

    def decide(self, tokens):
        return FastV(layer=0, keep=0.3, hide=True).decide(tokens)


@torch.no_grad()
@pytest.mark.parametrize("beams", [BEAMS])
def test_several_sequences(beams):
    model = tiny_llava()
    x = {**batch(prompt(5, 0, 7), prompt(3, 0, 2, seed=1)), "pixel_values": picture(2)}
    settings = dict(num_beams=beams, max_new_tokens=5, do_sample=False)
    with vtprune.applied(model, [LEAVE]):
        expected = model.generate(**x, **settings)
    with vtprune.applied(model, [HIDE]):
        assert torch.equal(model.generate(**x, **settings), expected)


def test_refusals():
    for later in ("exit:layer=3", "snapkv:keep=0.5"):
        with pytest.raises(ValueError, match="fastv hides tokens that stay where they are, so that"):
            vtprune.apply(tiny_llava(), [HIDE, later])
    with vtprune.applied(tiny_llava(), ["divprune:keep=0.5", HIDE]):
        pass

    @dataclasses.dataclass(frozen=True)
    class Twice(Method):
        name = "twice"
        kind = "pruning"
        places = (Place.DECODER_LAYER,)

        def stages(self, model):
            return [Stage(Place.DECODER_LAYER, lambda tokens: Keep(tokens.valid), (1, 2), hides=True)]

    with pytest.raises(TypeError, match="tokens can be hidden at one decoder layer"):
        vtprune.apply(tiny_llava(), Twice())
