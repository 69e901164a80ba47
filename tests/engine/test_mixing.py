"""A stage at a decoder layer may give the tokens that stay new hidden states."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import vtprune
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.reference import bare_run, decisions, feeding, positions_of, whole
from vtprune.methods.base import Keep, Method, Place, Stage

CLOSE = dict(atol=1e-4, rtol=1e-4)
LAYER = 2


def mixed(x: Tensor, valid: Tensor) -> Tensor:
    """Every token and its row's mean."""
    there = valid.unsqueeze(-1)
    mean = (x * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)
    return 0.7 * x + 0.5 * mean


@dataclasses.dataclass(frozen=True)
class Toy(Method):
    """Keeps every second visual token, with a share of what all of them are on average."""

    name = "toy"
    kind = "merging"
    places = (Place.DECODER_LAYER,)

    announced: bool = True
    step: int = 2
    layer: int = LAYER
    seen: list = dataclasses.field(default_factory=list)

    def stages(self, model):
        return [
            Stage(
                Place.DECODER_LAYER,
                self.decide,
                (self.layer,),
                frozenset({"hidden"}),
                mixes=self.announced,
            )
        ]

    def decide(self, tokens):
        self.seen.append(tokens)
        number = tokens.valid.long().cumsum(1) - 1
        return Keep(tokens.valid & (number % self.step == 0), lambda x: mixed(x, tokens.valid))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_a_plain_loop(name, attention):
    family = FAMILIES[name]
    model = family.model(attention)
    rows = [family.row(5, IMAGE, 7), family.row(3, IMAGE, 2, IMAGE, 6, seed=1)]
    if VIDEO in family.kinds:
        rows.append(family.row(2, IMAGE, 3, VIDEO, 4, seed=2))
    for row in rows:
        with vtprune.applied(model, Toy()), feeding(model) as seen:
            logits = model(**family.inputs(row)).logits
            decided = decisions(model, row)
            newlines = vtprune.api._engines[model].latest.layout.newlines
        fed = whole(model, row, [(torch.arange(len(row.ids)), seen[0])])
        candidates = row.visual if newlines is None else row.visual & ~newlines[0]

        def mix(layer, hidden, slots, candidates=candidates):
            if layer != LAYER:
                return hidden
            hidden = hidden.clone()
            here = candidates[slots]
            hidden[:, here] = mixed(hidden[:, here], torch.ones(1, int(here.sum()), dtype=torch.bool))
            return hidden

        found, _ = bare_run(model, fed, positions_of(model, family, row), decided, mix=mix)
        unmixed, _ = bare_run(model, fed, positions_of(model, family, row), decided)
        torch.testing.assert_close(logits, found, **CLOSE)
        assert (logits - unmixed).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_padded_batch_equals_its_rows_alone(name):
    """Rows with different numbers of tokens, one without any, and answers from the kept cache."""
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(9, seed=2), family.row(1, IMAGE, 2, IMAGE, 4, seed=4)]
    if VIDEO in family.kinds:
        rows.append(family.row(1, VIDEO, 2, IMAGE, 2, seed=6))
    settings = dict(max_new_tokens=4, do_sample=False)
    with vtprune.applied(family.model(), Toy()) as model:
        x, right = family.inputs(*rows), family.inputs(*rows, side="right")
        together = [model(**x).logits[:, -1], model(**x, use_cache=False).logits[:, -1], model(**right).logits[:, -1]]
        answers = model.generate(**x, **settings)[:, -4:]
        for i, row in enumerate(rows):
            alone = family.inputs(row)
            for logits in together:
                torch.testing.assert_close(logits[i], model(**alone).logits[0, -1], **CLOSE)
            assert torch.equal(answers[i], model.generate(**alone, **settings)[0, -4:])


@torch.no_grad()
def test_nothing_leaves_and_everything_changes():
    family = FAMILIES["llava-clip"]
    model = family.model()
    x = family.inputs(family.row(5, IMAGE, 7))
    plain = model(**x).logits
    with vtprune.applied(model, Toy(step=1)):
        assert model(**x).logits.shape == plain.shape
        assert not torch.allclose(model(**x).logits, plain, atol=1e-2)


def test_gradients_go_through_the_mix():
    """Tokens that leave reach the loss through those that stay."""
    family = FAMILIES["llava-clip"]
    model = family.model()
    toy, embeds = Toy(layer=0), []

    def watch(module, args, kwargs):
        kwargs["inputs_embeds"].retain_grad()
        embeds.append(kwargs["inputs_embeds"])

    row = family.row(5, IMAGE, 7)
    with vtprune.applied(model, toy):
        handle = model.model.language_model.register_forward_pre_hook(watch, with_kwargs=True)
        model(**family.inputs(row), use_cache=False).logits[:, -1].sum().backward()
        handle.remove()
    assert not toy.seen[0].hidden.requires_grad
    assert (embeds[0].grad[0, row.visual].abs().sum(-1) > 0).all()


def test_features_that_were_not_announced():
    family = FAMILIES["llava-clip"]
    with (
        vtprune.applied(family.model(), Toy(announced=False)) as model,
        pytest.raises(TypeError, match="must say so by mixes=True"),
    ):
        model(**family.inputs(family.row(1, IMAGE, 1)))
