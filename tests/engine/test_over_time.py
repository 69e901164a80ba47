"""A transform over the frames of a video: fewer frames, at the language model's door."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.families import FAMILIES, VIDEO
from tests.reference import reference, run

METHOD = ("fourier", {"keep": 0.3, "frames": 0.5})
FRAME_BY_FRAME = ("llava_next_video", "internvl", "llava-clip")
WHOLE = [name for name, family in FAMILIES.items() if VIDEO in family.kinds and name not in FRAME_BY_FRAME]


@pytest.mark.parametrize("name", FRAME_BY_FRAME)
def test_families_that_encode_frame_by_frame_refuse(name: str) -> None:
    with pytest.raises(ValueError, match="needs a video in one piece"):
        vtprune.apply(FAMILIES[name].model(), *METHOD[:1], **METHOD[1])


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_equals_the_bare_model_on_the_new_features(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    row = family.row(5, VIDEO, 7)
    (decided,), (fed,), logits, report = run(model, family, METHOD, row)
    expected, _ = reference(model, family, row, decided, fed)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    with vtprune.applied(model, "fourier", keep=0.3):
        model(**family.inputs(row))
        each_frame = vtprune.report(model)
    frames = each_frame.pictures[0].maps[0].grid[0]
    if frames > 1:
        kept = frames_left(report.pictures[0])
        assert kept == -(-frames // 2) or kept == frames // 2
        assert frames_left(each_frame.pictures[0]) == frames


def frames_left(picture) -> int:
    """Number of frames that still have tokens."""
    (one,) = picture.maps
    per_frame = one.grid[1] * one.grid[2]
    number = {token: i // per_frame for i, token in enumerate(one.tokens)}
    return len({number[token] for token in picture.kept if token in number})
