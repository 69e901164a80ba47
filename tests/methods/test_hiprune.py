"""HiPrune: anchors, their neighbours, and the rest by the deep block."""

from __future__ import annotations

import pytest
import torch

from tests.methods.inputs import INFO, pictures
from vtprune.methods import ModelInfo
from vtprune.methods.base import Cells
from vtprune.methods.hiprune import HiPrune, anchor_count, anchors_buffers_registers, flat_neighbours, neighbours


def marked(*index, tokens=12):
    mask = torch.zeros(1, tokens, dtype=torch.bool)
    mask[0, list(index)] = True
    return mask


def around(*index):
    """Neighbours on a grid of 3 rows and 4 columns."""
    raster = torch.arange(12)[None]
    return neighbours(marked(*index), torch.zeros_like(raster), raster // 4, raster % 4)


@pytest.mark.parametrize(
    ("count", "alpha", "anchors"), [(192, 0.1, 4), (128, 0.1, 3), (64, 0.1, 1), (25, 0.1, 0), (7, 1.0, 1)]
)
def test_anchors_round_halves_to_even(count, alpha, anchors):
    assert anchor_count(count, alpha) == anchors


def test_neighbours_stay_on_the_grid():
    assert around(3).nonzero()[:, 1].tolist() == [2, 7]  # not 4, the first of the next row
    assert around(5).nonzero()[:, 1].tolist() == [1, 4, 6, 9]


def test_flat_neighbours_run_on():
    assert flat_neighbours(marked(3), 4).nonzero()[:, 1].tolist() == [0, 2, 4, 7]


def test_the_budget_is_exact_and_what_is_kept_is_not_picked_again():
    deep = torch.linspace(3, 1, 12)[None]
    anchors, buffers = marked(0), marked(1, 4)
    mask = anchors_buffers_registers(anchors, buffers, deep, 5)
    assert mask.nonzero()[:, 1].tolist() == [0, 1, 2, 3, 4]
    # The authors' rule: one less is still among the highest where scores are large.
    assert anchors_buffers_registers(anchors, buffers, deep + deep, 5, subtract=True).sum() < 5


def test_too_many_buffers_are_cut_by_score():
    deep = torch.arange(12.0)[None]
    assert anchors_buffers_registers(marked(5), marked(1, 4, 6, 9), deep, 3).nonzero()[:, 1].tolist() == [5, 6, 9]


def test_blocks():
    def blocks(model):
        return sorted(s.block for s in HiPrune().stages(model)[0].signals)

    assert blocks(INFO) == [8, 22]
    assert blocks(ModelInfo("q", 32, 36, False, attention_blocks=(7, 15, 23, 31), scored_block=31)) == [15, 31]


def test_refused_where_no_block_can_be_asked():
    with pytest.raises(ValueError, match=r"no vision block of this model \(x\) can be asked"):
        HiPrune().stages(ModelInfo("x", 0, 2, True))


def test_wrap_needs_whole_grids():
    (stage,) = HiPrune(wrap=True).stages(INFO)
    batch = pictures(signals=stage.signals)
    assert stage.decide(batch).mask.sum(1).tolist() == [16, 16]
    object.__setattr__(batch, "grid", None)
    with pytest.raises(ValueError, match="needs whole grids; put it first"):
        stage.decide(batch)


def test_works_on_what_earlier_methods_left():
    (stage,) = HiPrune(keep=0.5, alpha=1.0).stages(INFO)
    whole = pictures(count=1, grid=(1, 3, 4), signals=stage.signals)
    left = torch.tensor([[0, 1, 2, 5, 7, 11]])
    cells = Cells(*(x.gather(1, left) for x in whole.cells))
    signals = {s: x.gather(1, left) for s, x in whole.signals.items()}
    fewer = type(whole)(None, whole.encoded[:, left[0]], cells=cells, signals=signals)
    assert stage.decide(fewer).mask.sum() == 3
