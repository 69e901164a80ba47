"""Merged tokens that stay on their slots and share a hidden state, against a plain loop that goes group by group."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.reference import positions_of, reference, run
from tests.tiny import BEAMS
from vtprune.engine.flops import linear_flops
from vtprune.engine.sharing import Sharing
from vtprune.engine.slots import Slots
from vtprune.methods.base import Group, Keep, Method, Place, Stage

CLOSE = dict(atol=1e-4, rtol=1e-4)
TOWERS = ("llava-clip", "llava-siglip", "llava_next", "llava_next_video", "llava_onevision", "internvl")


@dataclasses.dataclass(frozen=True)
class Door(Method):
    """At the encoder's output: tokens share the state of the one `step` places before that is a multiple of it."""

    name = "door"
    kind = "merging"
    places = (Place.ENCODER_OUTPUT,)
    step: int = 3

    def stages(self, model):
        return [Stage(Place.ENCODER_OUTPUT, self.decide, shares=True)]

    def decide(self, pictures):
        tokens = torch.arange(pictures.tokens).expand(pictures.encoded.shape[:2])
        owner = tokens // self.step * self.step
        return Keep(owner == tokens, owner=owner)


@dataclasses.dataclass(frozen=True)
class Inside(Method):
    """Between vision blocks: tiles merge different numbers of tokens, by the sign of a channel."""

    name = "inside"
    kind = "merging"
    places = (Place.ENCODER_LAYER,)
    shares: bool = True

    def stages(self, model):
        return [Stage(Place.ENCODER_LAYER, self.decide, (0, 2), ragged=True, shares=self.shares)]

    def decide(self, tokens):
        there = tokens.sizes > 0
        number = torch.arange(tokens.sizes.shape[1]).expand(tokens.sizes.shape)
        chosen = (tokens.hidden[..., tokens.layer] > 0) & there & (number >= tokens.protected + 2)
        alone = there & ~chosen
        owner = (alone.cumsum(1) - 1).masked_fill(~alone, tokens.protected + 1)
        return Group(owner, int(alone.sum(1).max()), ragged=True)


def prompts(family):
    found = [family.row(5, IMAGE, 7), family.row(3, IMAGE, 2, IMAGE, 6, seed=1), family.row(9, seed=2)]
    return [*found, family.row(1, VIDEO, 2, IMAGE, 4, seed=3)] if VIDEO in family.kinds else found


def methods(name):
    return [Door(), Door(step=1), Inside()] if name in TOWERS else [Door()]


@pytest.mark.parametrize("attention", ["sdpa", "eager", "vtprune"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_prefill_equals_the_loop(name, attention):
    family = FAMILIES[name]
    model = family.model(attention)
    # With attention of ours in the tower too, its keys cannot be weighed.
    for method in methods(name) if attention != "vtprune" else [Door()]:
        for row in prompts(family)[:2]:
            (decided,), (fed,), logits, report = run(model, family, (method, {}), row)
            expected, _ = reference(model, family, row, decided, fed)
            torch.testing.assert_close(logits, expected, **CLOSE)
            assert report.visual_tokens_after == report.visual_tokens_before == row.tokens
            assert report.kv_bytes_after == report.kv_bytes_before


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_padded_batch_equals_its_rows_and_goes_on_decoding(name):
    family = FAMILIES[name]
    model = family.model()
    rows = prompts(family)
    x = family.inputs(*rows)
    new = x["input_ids"].shape[1]
    for method in methods(name):
        with vtprune.applied(model, method):
            together = model(**x).logits[:, -1]
            right = model(**family.inputs(*rows, side="right")).logits
            answers = model.generate(**x, max_new_tokens=4, do_sample=False)[:, new:]
            beams = model.generate(**x, max_new_tokens=4, do_sample=False, num_beams=BEAMS)[:, new:]
            for i, row in enumerate(rows):
                alone = family.inputs(row)
                torch.testing.assert_close(together[i], model(**alone).logits[0, -1], **CLOSE)
                torch.testing.assert_close(right[i, len(row.ids) - 1], together[i], **CLOSE)
                answer = model.generate(**alone, max_new_tokens=4, do_sample=False)
                assert torch.equal(answers[i], answer[0, len(row.ids) :])
                answer = model.generate(**alone, max_new_tokens=4, do_sample=False, num_beams=BEAMS)
                assert torch.equal(beams[i], answer[0, len(row.ids) :])
            again = model.generate(**x, max_new_tokens=4, do_sample=False, use_cache=False)[:, new:]
            assert torch.equal(answers, again)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_alone_nothing_is_shared(name):
    family = FAMILIES[name]
    model = family.model()
    x = family.inputs(*prompts(family))
    expected = model(**x).logits
    with vtprune.applied(model, Door(step=1)):
        assert torch.equal(model(**x).logits, expected)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_second_picture_on_a_kept_cache(name):
    """The second turn sees the first one's tokens, all of them."""
    family = FAMILIES[name]
    model = family.model()
    first, second = family.row(3, IMAGE, 4), family.row(2, IMAGE, 5, seed=1)
    whole = first.then(second)
    with vtprune.applied(model, Door()):
        expected = model(**family.inputs(whole)).logits[:, len(first.ids) :]
        cache = model(**family.inputs(first), use_cache=True).past_key_values
        more = family.inputs(whole, new=(second,))
        more = {k: v[:, len(first.ids) :] if k in ("input_ids", "mm_token_type_ids") else v for k, v in more.items()}
        if family.typed:
            more["position_ids"] = positions_of(model, family, whole)[:, None, len(first.ids) :]
        torch.testing.assert_close(model(**more, past_key_values=cache).logits, expected, **CLOSE)
    assert cache.get_seq_length() == len(whole.ids)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_equal_tokens_put_into_the_first_cache_layer_what_they_would_alone(name):
    family = FAMILIES[name]
    model = family.model()
    x = family.inputs(family.row(5, IMAGE, 7))

    @dataclasses.dataclass(frozen=True)
    class Equal(Door):
        """Makes the tokens of a group equal; they share a state or not."""

        shares: bool = True

        def stages(self, model):
            return [dataclasses.replace(stage, mixes=True, shares=self.shares) for stage in super().stages(model)]

        def decide(self, pictures):
            made = super().decide(pictures)
            mask = made.mask if self.shares else torch.ones_like(made.mask)
            return Keep(mask, lambda x: x.gather(1, made.owner[..., None].expand_as(x)), made.owner)

    caches = []
    for shares in (True, False):
        with vtprune.applied(model, Equal(shares=shares)):
            caches.append(model(**x, use_cache=True).past_key_values)
    for which in ("keys", "values"):
        shared, alone = (getattr(cache.layers[0], which) for cache in caches)
        torch.testing.assert_close(shared, alone)
    assert not torch.allclose(caches[0].layers[1].keys, caches[1].layers[1].keys, atol=1e-3)


@torch.no_grad()
def test_what_runs_on_states_and_what_on_slots():
    family = FAMILIES["llava-clip"]
    model = family.model()
    row = family.row(5, IMAGE, 7)  # 36 tokens, 12 groups
    seen = {}
    layer = model.model.language_model.layers[2]
    watched = {"norm": layer.input_layernorm, "mlp": layer.mlp}
    watched |= {name: getattr(layer.self_attn, f"{name}_proj") for name in "qkvo"}
    with vtprune.applied(model, Door()):
        handles = [
            module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].shape[1]}))
            for name, module in watched.items()
        ]
        out = model(**family.inputs(row), use_cache=True)
        report = vtprune.report(model)
    for handle in handles:
        handle.remove()
    assert seen == dict.fromkeys(watched, 24)
    assert out.logits.shape[1] == out.past_key_values.layers[2].keys.shape[2] == 48
    saved = sum((48 - 24) * linear_flops(layer) for layer in model.model.language_model.layers)
    assert report.prefill_flops_before - report.prefill_flops_after == saved
    assert "the 36 visual tokens share 12 hidden states" in str(report)
    assert report.pictures[0].owner[:4] == (0, 0, 0, 3)
    assert len(report.pictures[0].kept) == 36


def test_gradients_are_those_of_the_loop():
    family = FAMILIES["llava-clip"]
    model = family.model()
    row = family.row(5, IMAGE, 7)
    with torch.no_grad():
        (decided,), (fed,), _, _ = run(model, family, (Inside(), {}), row)
    watched = model.model.language_model.layers[1].self_attn.q_proj.weight
    reference(model, family, row, decided, fed)[0][0, -1].square().sum().backward()
    expected, watched.grad = watched.grad, None
    with vtprune.applied(model, Inside()):
        model(**family.inputs(row)).logits[0, -1].square().sum().backward()
    torch.testing.assert_close(watched.grad, expected, **CLOSE)


def test_owners_of_a_padded_batch():
    valid = torch.tensor([[False, True, True, True, True], [True] * 5])
    owner = torch.tensor([[0, 1, 2, 2, 4], [0, 1, 1, 1, 1]])
    sharing = Sharing.of(owner, Slots(5, [4, 5], valid))
    assert sharing.counts == [3, 2]
    x = torch.tensor([[9.0, 1, 2, 4, 8], [1, 2, 4, 6, 8]])[..., None]
    assert sharing.spread(sharing.take(x))[..., 0].tolist() == [[1, 1, 2, 2, 8], [1, 2, 2, 2, 2]]
    assert sharing.spread(sharing.average(x))[..., 0].tolist() == [[1, 1, 3, 3, 8], [1, 5, 5, 5, 5]]
    assert Sharing.of(torch.arange(5).expand(2, -1), Slots(5, [4, 5], valid)) is None


def test_refuses():
    family = FAMILIES["llava-clip"]
    model = family.model()
    with pytest.raises(ValueError, match="no other method can act beside it, got door \\+ fastv"):
        vtprune.apply(model, [Door(), "fastv"])
    with pytest.raises(ValueError, match="no other method can act beside it, got tome \\+ door"):
        vtprune.apply(model, ["tome", Door()])

    @dataclasses.dataclass(frozen=True)
    class Late(Door):
        def stages(self, model):
            return [Stage(Place.DECODER_LAYER, self.decide, (2,), shares=True)]

    with pytest.raises(ValueError, match="only tokens that merge before the language model"):
        vtprune.apply(model, Late())
    model_inputs = family.inputs(family.row(5, IMAGE, 7))
    for owner, error in ((None, "must name an owner"), (torch.arange(36).roll(1)[None], "one that stands for itself")):

        @dataclasses.dataclass(frozen=True)
        class Wrong(Door):
            def decide(self, pictures, owner=owner):
                return Keep(super().decide(pictures).mask, owner=owner)

        with vtprune.applied(model, Wrong()), pytest.raises((TypeError, ValueError), match=error):
            model(**model_inputs)
    model.gradient_checkpointing_enable()
    with vtprune.applied(model.train(), Door()), pytest.raises(ValueError, match="gradient checkpointing"):
        model(**model_inputs)


def test_a_decoder_whose_projections_are_one():
    family = FAMILIES["llava-clip"]
    model = family.model()
    attention = model.model.language_model.layers[3].self_attn
    attention.qkv_proj = attention.q_proj
    del attention.q_proj
    with pytest.raises(ValueError, match="has a decoder without q_proj, k_proj, v_proj, o_proj"):
        vtprune.apply(model, Door())
    assert not attention._forward_pre_hooks
