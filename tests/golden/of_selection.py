"""Golden cases of selection at the encoder's output: of frames, of tokens by time, diversity and relevance, merging."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtprune.integrations.layout import Map, PictureLayout
from vtprune.kernels import compact_index
from vtprune.methods import Pictures
from vtprune.methods._frames import frame_numbers
from vtprune.methods.evs import EVS, dissimilarity
from vtprune.methods.vidcom2 import (
    VidCom2,
    frame_counts,
    frame_scales,
    newlines_last,
    quiet_channels,
    quiet_rows,
    usual,
)

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


def vidcom2(case: Case) -> dict[str, Any]:
    features, grid, base = case["features"][None], tuple(case["thw"].tolist()), float(case["base_scale"])
    frames = grid[0]
    pictures = Pictures(grid, features, projected=features)
    number, _ = frame_numbers(pictures)
    channels = quiet_channels(features)
    of_video, of_frame = usual(quiet_rows(features, channels), number, frames)
    scales = frame_scales(of_video, number, frames, base)
    mask = VidCom2(keep=base).decide(pictures).mask.view(frames, -1)
    index = newlines_last(mask, grid[2]) if int(case["grid_newline"]) else mask.flatten().nonzero()[:, 0]
    source = case["img_feat_with_newline"] if int(case["grid_newline"]) else case["features"]
    return {
        "low_var_channels_sorted": channels[0].sort().values,
        "video_score": of_video.view(frames, -1),
        "frame_score": of_frame.view(frames, -1),
        "retention_scales": scales[0],
        "counts": frame_counts(scales, number)[0],
        "local_indices_concat": mask.nonzero()[:, 1],
        "global_indices": index,
        "out": source[index],
    }


ADAPTERS = {"evs": evs, "vidcom2": vidcom2}
INPUTS = {"evs": {"embeds", "thw_premerge"}, "vidcom2": {"features", "thw", "img_feat_with_newline"}}
