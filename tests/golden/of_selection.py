"""Golden cases of selection at the encoder's output: of frames, of tokens by time, diversity and relevance, merging."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vtprune.integrations.layout import Map, PictureLayout
from vtprune.kernels import compact_index, greedy_select
from vtprune.methods import Pictures
from vtprune.methods._frames import frame_numbers
from vtprune.methods._select import index_mask
from vtprune.methods.cdpruner import relevance
from vtprune.methods.evs import EVS, dissimilarity
from vtprune.methods.idpruner import IDPruner, marginal_relevance
from vtprune.methods.quota import plan, shares
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


def idpruner(case: Case) -> dict[str, Any]:
    features, raw = case["features"][None], case["raw_scores"][None]
    dropped, trade_off, parallel, _ = case["params"].double().tolist()
    method = IDPruner(keep=1 - dropped, trade_off=trade_off, parallel=int(parallel))
    mask = method.decide(Pictures(None, features, projected=features, attention=raw)).mask
    return {
        "kept_sorted": compact_index(mask)[0][0],
        "selected_order_fp64": marginal_relevance(features, raw, int(mask.sum()), trade_off, int(parallel))[0],
    }


def cdpruner(case: Case) -> dict[str, Any]:
    features, images, text = case["image_features"], case["image_embeds"], case["text_embeds"]
    together = relevance(images.flatten(0, 1)[None], text[None], negative=True).view(images.shape[:2])
    picks = greedy_select(features, int(case["budget"]), rule="dpp", importance=together)
    return {
        "relevance": together,
        "selected_order_fp64": picks,
        "kept_sorted": compact_index(index_mask(picks, features.shape[1]))[0],
    }


def quota(case: Case) -> dict[str, Any]:
    side, budget, version = int(case["grid"]), int(case["total"]) * int(case["per"]), int(case["version"])
    raw = [(100 * p) ** 2 for p in case["prob_A"].tolist()]
    weights = shares(raw, side**2 / budget if version > 1 else math.inf)
    counts = [int(budget * weight) for weight in weights]
    resample = ("bilinear", "average", "pick", "merge", "merge_axes")[version - 1]
    kept = [i for i, count in enumerate(counts) if count > 0]
    plans = [plan(case["features"][i], (side, side), counts[i], resample) for i in kept]
    return {
        "raw_weights": raw,
        "normalised_or_capped_weights": weights,
        "tokens_per_frame": counts,
        "kept_frames": kept,
        "out_hw": [one.size for one in plans],
        "out": torch.cat([one.make(case["features"][i]) for i, one in zip(kept, plans, strict=True)]),
    }


ADAPTERS = {"cdpruner": cdpruner, "evs": evs, "idpruner": idpruner, "quota": quota, "vidcom2": vidcom2}
INPUTS = {
    "cdpruner": {"image_features", "image_embeds", "text_embeds"},
    "evs": {"embeds", "thw_premerge"},
    "idpruner": {"features", "q_weight", "q_bias", "k_weight", "k_bias", "raw_scores", "params"},
    "quota": {"features", "prob_A"},
    "vidcom2": {"features", "thw", "img_feat_with_newline"},
}
