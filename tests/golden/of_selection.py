"""Golden cases of selection at the encoder's output: of frames, of tokens by time, diversity and relevance, merging."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtprune.integrations.layout import Map, PictureLayout
from vtprune.kernels import compact_index
from vtprune.methods import Pictures
from vtprune.methods.evs import EVS, dissimilarity

Case = dict[str, Tensor]


def evs(case: Case) -> dict[str, Any]:
    merge = int(case["spatial_merge"])
    frames, height, width = case["thw_premerge"].tolist()
    rows, columns = height // merge, width // merge
    features, grid = case["embeds"][None], (frames, rows, columns)
    decision = EVS(q=float(case["q"])).decide(Pictures(grid, features, projected=features))
    mask = torch.ones(features.shape[1], dtype=torch.bool) if decision is None else decision.mask[0]
    _, _, frame, row, column = PictureLayout("video", (Map("video", grid),), len(mask)).cells.T
    time = (frame * float(case["tokens_per_second"]) * float(case["second_per_grid"])).floor().long()
    places = torch.stack((time, row, column, torch.full_like(row, columns)), 1)
    return {
        "dissimilarity": dissimilarity(features, frames)[0],
        "mask": mask.long(),
        "kept_indices": compact_index(mask[None])[0][0],
        "mrope_thw_and_width": places,
        "mrope_kept": places[mask],
    }


ADAPTERS = {"evs": evs}
INPUTS = {"evs": {"embeds", "thw_premerge"}}
