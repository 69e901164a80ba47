"""Pictures of one batch whose grids are replaced by grids of different sizes."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.reference import reference, run
from vtprune.methods.fourier import Fourier

CLOSE = dict(atol=1e-4, rtol=1e-4)
METHOD = Fourier(keep=0.7, energy=0.6)


def rows_of(family):
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, IMAGE, 1, seed=3), family.row(4, IMAGE, 2)]
    if VIDEO in family.kinds:
        rows.append(family.row(2, VIDEO, 2, seed=6))
    return rows


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_batch_equals_its_pictures_alone(name):
    family = FAMILIES[name]
    model = family.model()
    with vtprune.applied(model, METHOD):
        together = model(**family.inputs(*rows_of(family))).logits[:, -1]
        report = vtprune.report(model)
        kept = [(p.row, p.kept, p.owner) for p in report.pictures]
        alone = []
        for i, row in enumerate(rows_of(family)):
            torch.testing.assert_close(together[i], model(**family.inputs(row)).logits[0, -1], **CLOSE)
            alone += [(i, p.kept, p.owner) for p in vtprune.report(model).pictures]
    assert kept == alone
    assert len({len(tokens) for _, tokens, _ in kept}) > 1, "the pictures keep equally many: nothing is tested"
    assert report.places[0].tokens_after < report.places[0].tokens_before


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_bare_decoder(name):
    family = FAMILIES[name]
    model = family.model()
    row = family.row(3, IMAGE, 2, IMAGE, 6, seed=1)
    (decided,), (fed,), logits, report = run(model, family, (METHOD, {}), row)
    expected, slots = reference(model, family, row, decided, fed)
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert report.visual_tokens_after == len(slots) - row.text
