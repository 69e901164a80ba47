"""Golden cases of methods that look at a picture's pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtprune.engine.pixels import steps_on_map
from vtprune.integrations.layout import Map, PictureLayout
from vtprune.methods import Cells
from vtprune.methods.showui import components, distances, neighbours, subsample

Case = dict[str, Tensor]


def showui(case: Case) -> dict[str, Any]:
    visual = case["patch_pos"] >= 0
    if "pixel_norm" not in case:
        names = [name for name in case if name.startswith("ratio_")]
        ratios = {name.removeprefix("ratio"): round(float(case[name]), 4) for name in names}
        return {f"retain_mask{j}": _retained(case["patch_pos"], visual, ratio) for j, ratio in ratios.items()}
    side, grid = 2 * int(case["patch_size"]), (1, int(case["grid_h"]), int(case["grid_w"]))
    cells = case["pixel_norm"].unflatten(2, (-1, side)).unflatten(1, (-1, side)).permute(1, 3, 0, 2, 4)
    pixels = torch.stack((cells, cells), dim=3).flatten(2).flatten(0, 1)  # both frames of a still picture
    one = Map("picture", grid)
    distance = distances(steps_on_map(one, pixels), pixels.shape[1])
    where = Cells(*PictureLayout("image", (one,), one.tokens).cells.T.unsqueeze(1))
    component = components(distance[None] < case["threshold"], neighbours(where))
    ratio = round(float(case["skip_ratio"]), 4)  # stored in float32
    mask = _retained(case["patch_pos"].masked_scatter(visual, component), visual, ratio)
    return {
        "diff_right": distance.view(*grid[1:], 2)[:, :-1, 0],
        "diff_down": distance.view(*grid[1:], 2)[:-1, :, 1],
        "component": component[0],
        "retain_mask": mask,
        "retain_index": mask.nonzero()[:, 0],
    }


def _retained(component: Tensor, visual: Tensor, ratio: float) -> Tensor:
    return torch.ones_like(visual).masked_scatter(visual, subsample(component[visual][None], ratio)).long()


ADAPTERS = {"showui": showui}
INPUTS = {"showui": {"image_uint8", "pixel_norm", "patch_pos"}}
