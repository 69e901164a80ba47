"""A stage at the encoder's output may give kept tokens new features, on every level, and may look at the text."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.reference import feeding
from vtprune.methods.base import Keep, Method, Place, Stage


def neighbours(x: Tensor) -> Tensor:
    return x + 0.5 * x.roll(-1, dims=1)


@dataclasses.dataclass(frozen=True)
class Toy(Method):
    """Keeps every second token, with or without half of its neighbour's features."""

    name = "toy"
    kind = "merging"
    places = (Place.ENCODER_OUTPUT,)
    mixed: bool = True
    seen: ClassVar[list] = []

    def stages(self, model):
        signals = frozenset({"text", "projected"})
        return [Stage(Place.ENCODER_OUTPUT, self.decide, signals=signals, mixes=self.mixed)]

    def decide(self, pictures):
        self.seen.append(pictures)
        tokens = torch.arange(pictures.tokens).expand(pictures.encoded.shape[:2])
        return Keep(tokens % 2 == 0, neighbours, tokens // 2 * 2) if self.mixed else Keep(tokens % 2 == 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_level_gets_the_new_features(name):
    family = FAMILIES[name]
    model = family.model()
    inputs = family.inputs(family.row(3, IMAGE, 2))
    fed = {}
    for mixed in (False, True):
        Toy.seen.clear()
        with vtprune.applied(model, Toy(mixed=mixed)), feeding(model) as seen, torch.no_grad():
            model(**inputs)
            fed[mixed] = seen[0]
            report = vtprune.report(model)
            latest = vtprune.api._engines[model].latest
    (pictures,) = Toy.seen[:1]  # then DeepStack's levels
    expected = neighbours(pictures.projected)[:, ::2]
    picture = latest.slots.on(latest.layout.picture)
    newline = latest.layout.newlines
    visual = picture >= 0
    if newline is not None:
        visual = visual & ~latest.slots.on(newline)
    torch.testing.assert_close(fed[True].embeds[visual], expected.flatten(0, 1))
    assert not torch.equal(fed[True].embeds[visual], fed[False].embeds[visual])
    assert torch.equal(fed[True].embeds[~visual], fed[False].embeds[~visual])
    assert len(fed[True].deep) == len(fed[False].deep)
    for mixed_level, level in zip(fed[True].deep, fed[False].deep, strict=True):
        assert not torch.equal(mixed_level[visual], level[visual])
    owner = report.pictures[0].owner
    assert owner is not None
    slots = [slot for grid in report.pictures[0].maps for slot in grid.tokens]
    assert {owner[slot] for slot in slots} == set(slots) & set(report.pictures[0].kept)


def test_the_text_of_every_row():
    family = FAMILIES["llava-clip"]
    model = family.model()
    rows = family.row(3, IMAGE, 2), family.row(1, IMAGE, 7, seed=1)
    inputs = family.inputs(*rows)
    Toy.seen.clear()
    with vtprune.applied(model, Toy()), torch.no_grad():
        model(**inputs)
    (pictures,) = Toy.seen
    assert pictures.text_valid.sum(1).tolist() == [2, 7]
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    for i, n in enumerate((2, 7)):
        torch.testing.assert_close(pictures.text[i][pictures.text_valid[i]], embeddings[i, -n:])


def test_features_that_were_not_announced():
    @dataclasses.dataclass(frozen=True)
    class Silent(Toy):
        def stages(self, model):
            return [dataclasses.replace(stage, mixes=False) for stage in super().stages(model)]

    family = FAMILIES["llava-clip"]
    model = family.model()
    with vtprune.applied(model, Silent()), pytest.raises(TypeError, match="must say so by mixes=True"):
        model(**family.inputs(family.row(1, IMAGE, 1)))
