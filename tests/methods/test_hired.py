"""HiRED: how tiles share the budget."""

from __future__ import annotations

import dataclasses

import torch

from tests.methods.inputs import INFO
from tests.methods.tiled import tiled
from vtprune.engine.tiles import nearly_square
from vtprune.integrations.layout import Map
from vtprune.methods import ModelInfo
from vtprune.methods.hired import HiRED, crop_shares, strips

QUADRANTS = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]


def decide(pictures, **parameters):
    (stage,) = HiRED(**parameters).stages(INFO)
    return stage.decide(dataclasses.replace(pictures, signals=dict.fromkeys(stage.signals, pictures.attention)))


def test_tiles_of_a_padded_canvas():
    tiles = tiled(columns=(4, 2)).tiles
    assert (tiles.side, tiles.grid, tiles.canvas) == ((4, 4), (2, 2), (8, 6))
    assert [len(x) for x in tiles.crops] == [16, 8, 16, 8]
    # Of six columns the first four are the left tiles: of the thumbnail's four, three centres lie there.
    assert tiles.regions().view(4, 4).tolist() == [[0, 0, 0, 1]] * 2 + [[2, 2, 2, 3]] * 2


def test_the_thumbnail_is_last_where_tiles_are_maps():
    maps = tuple(Map("tile", (1, 2, 2), start=4 * i) for i in range(7))
    tiles = tiled(maps=maps).tiles
    assert tiles.thumbnail.tolist() == [24, 25, 26, 27]
    assert (tiles.grid, tiles.canvas) == ((2, 3), (4, 6))
    assert tiles.place[4].tolist() == [14, 15, 20, 21]


def test_arrangements():
    assert [nearly_square(n) for n in (1, 2, 6, 7, 12)] == [(1, 1), (1, 2), (2, 3), (1, 7), (3, 4)]


def test_strips_are_runs_of_the_raster():
    assert strips(16, 4).tolist() == [i // 4 for i in range(16)]
    assert tiled().tiles.regions().tolist() == QUADRANTS


def test_shares_follow_the_content_and_are_rounded_down():
    early = torch.zeros(1, 16)
    early[0, [0, 1, 4, 2, 10, 11, 14, 15]] = torch.linspace(2, 1, 8)  # 3, 1, 0 and 4 of the eight
    assert crop_shares(early, torch.tensor(QUADRANTS), 4, 21, 0.5).tolist() == [[7, 2, 0, 10]]
    assert crop_shares(early, torch.tensor(QUADRANTS), 4, 20, 1.0).tolist() == [[5, 5, 5, 5]]


def test_half_of_the_budget_is_the_thumbnails():
    mask = decide(tiled(), keep=40).mask
    assert mask[:, :16].all()  # 20 are more than it has
    assert ((mask[:, 16:].sum(1) >= 20) & (mask[:, 16:].sum(1) <= 24)).all()
    assert decide(tiled(), keep=1.0).mask.all()
    assert decide(tiled(), keep=1).mask.sum(1).tolist() == [1, 1]


def test_asks_nothing_early_where_there_are_no_tiles():
    blocks = dict(attention_blocks=(0, 1), scored_block=1)
    (stage,) = HiRED().stages(ModelInfo("qwen2_vl", 2, 2, False, **blocks))
    assert stage.signals == {"encoder_attention"}
