"""Golden cases of methods that read the attention of single vision blocks, and of the tile methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtprune.kernels import attention_column_mass, attention_scores, compact_index, gather_rows, merge_by_owner
from vtprune.methods import CacheEntries, ModelInfo, Pictures
from vtprune.methods._groups import average
from vtprune.methods._select import top_k_mask
from vtprune.methods.base import EncoderSignal
from vtprune.methods.fastervlm import stitched_order
from vtprune.methods.globalcom2 import combined, crop_scales, guidance
from vtprune.methods.hiprune import anchor_count, anchors_buffers_registers, flat_neighbours
from vtprune.methods.hired import HiRED, crop_shares, strips
from vtprune.methods.mustdrop import MustDrop, key_set, likeness, passes, window_owner, windows_of
from vtprune.methods.turbo import attention_weight, turbo_step
from vtprune.methods.visionzip import contextual_targets, fold, mean_of_heads
from vtprune.methods.vtc_cls import VTCCLS, ensemble, summed

Case = dict[str, Tensor]


def vtc_cls(case: Case) -> dict[str, Any]:
    features, layers, first = case["features"], int(case["num_layers"]), int(case["start_layer"])
    # The paper's encoder puts out what its last block but one makes.
    model = ModelInfo("llava", layers - 1, 1, True, attention_blocks=tuple(range(layers)), scored_block=layers - 2)
    rows = case["cls_rows"].mean(1)[:, None, 1:]
    signals = {EncoderSignal("attention", block): row for block, row in enumerate(rows)}
    (stage,) = VTCCLS(keep=int(case["token_num"]), layer=first).stages(model)
    index, _ = compact_index(stage.decide(Pictures(None, features, signals=signals)).mask)
    blocks = ensemble(model, first)
    return {
        "layers_used": blocks,
        "scores": summed([rows[block] for block in blocks])[0],
        "kept_indices": index[0],
        "kept_features": gather_rows(features, index),
    }


def _tokens(case: Case, patches: Tensor) -> Tensor:
    """Values of Qwen2.5-VL's patches (batch, patches, ...) as those of tokens in raster order."""
    return patches.unflatten(1, (-1, 4)).mean(2)[:, case["reverse_indices"]]


def _received(q: Tensor, k: Tensor, case: Case) -> Tensor:
    """Attention received, (pictures, tokens): the mean over queries with [CLS], the sum over queries in Qwen2.5-VL."""
    if q.dim() == 4:
        return attention_column_mass(q, k)[:, 1:]
    return _tokens(case, attention_column_mass(q[None], k[None], normalise="sum"))


def _sequence(case: Case, kept: Tensor, tokens: int) -> Tensor:
    """Positions of kept tokens (kept,) and of all text around them."""
    before, after = int(case["n_text_before"]), int(case["n_text_after"])
    tail = torch.arange(after) + before + tokens
    return torch.cat([torch.arange(before), kept + before, tail])


def hiprune(case: Case) -> dict[str, Any]:
    out: dict[str, Any] = {}
    scores = [case[name] for name in ("object_score", "deep_score")]
    if "q_object" in case:
        scores = [_received(case[f"q_{x}"], case[f"k_{x}"], case) for x in ("object", "deep")]
    objects, deep = scores
    tokens, width = objects.shape[1], round(objects.shape[1] ** 0.5)
    if "retention" in case:
        count = int(case["retention"]) // int(case.get("num_crops", 1))
    else:
        width = int(case["grid_thw"][2]) // 2
        count = out["budget"] = round(tokens * round(float(case["retention_ratio"]), 6))
    out["n_anchor"] = anchor_count(count, round(float(case["alpha"]), 6))
    anchors = top_k_mask(objects, out["n_anchor"])
    buffers = flat_neighbours(anchors, width)
    mask = anchors_buffers_registers(anchors, buffers, deep, count, subtract=True)
    kept, _ = compact_index(mask, padded=True)
    out |= {"kept_mask": mask.long(), "kept_indices": kept[0], "num_kept": int(mask[0].sum())}
    if "grid_thw" in case:
        sequence = _sequence(case, kept[0], tokens)
        slots = tokens + int(case["n_text_before"]) + int(case["n_text_after"])
        positions = torch.arange(3 * slots).view(3, slots)[:, sequence]
        scored = {"object_score": objects[0], "deep_score": deep[0]}
        out |= {"kept_sequence_positions": sequence, "position_ids_out": positions}
    else:
        scored = {"object_score": objects, "deep_score": deep}
    if "grid_wh" in case:
        columns, rows = case["grid_wh"].tolist()
        out["out_source_crop"], out["out_source_token"] = stitched_order(mask, rows, columns)
    return out | scored


def visionzip(case: Case) -> dict[str, Any]:
    return (_visionzip_clip, _visionzip_crops, _visionzip_qwen)[int(case["mode"])](case)


def _flat(keys: Tensor) -> Tensor:
    """Keys of heads (batch, heads, n, head_dim) as (batch, n, heads * head_dim)."""
    return keys.transpose(1, 2).flatten(2)


def _visionzip_clip(case: Case) -> dict[str, Any]:
    q, keys, x = case["q_cls"].unsqueeze(2), case["keys"], case["hidden_states"]
    row = attention_scores(q, keys, reduce_heads=None)
    scores = row.sum(1)
    # [CLS] is always dominant, and counted.
    dominant = top_k_mask(scores.index_fill(1, torch.tensor(0), torch.inf), int(case["dominant"]))
    metric = mean_of_heads(_flat(keys), keys.shape[1])
    targets, owner = contextual_targets(metric, dominant, int(case["contextual"]))
    index, _ = compact_index(dominant)
    return {
        "cls_attn_row": row,
        "metric": metric,
        "scores": scores[:, 1:],
        "dominant_indices_sorted": index,
        "out_tokens": gather_rows(fold(x, owner), torch.cat((index, targets), 1)),
    }


def _visionzip_crops(case: Case) -> dict[str, Any]:
    keep, tokens = case["keep_idx"], case["crop_tokens"]
    crops, dominant = keep.shape
    mask = torch.zeros(1 + crops, 577, dtype=torch.bool)  # the thumbnail, of which nothing is here, and the crops
    mask[1:].scatter_(1, keep, True)
    slot = mask.cumsum(1) - 1
    crop, token = stitched_order(mask[:, 1:], int(case["grid_h"]), int(case["grid_w"]))
    every, rest = torch.arange(crops), torch.arange(dominant, tokens.shape[1])
    crop_of = torch.cat((crop - 1, every, every.repeat_interleave(len(rest))))
    slot_of = torch.cat((slot[crop, token + 1], torch.zeros(crops, dtype=torch.int64), rest.repeat(crops)))
    return {"out_source_crop": crop_of, "out_source_slot": slot_of, "out_tokens": tokens[crop_of, slot_of]}


def _visionzip_qwen(case: Case) -> dict[str, Any]:
    score = _received(case["q"], case["k"], case)
    metric = mean_of_heads(_tokens(case, _flat(case["k"][None])), len(case["k"]))
    tokens, before = score.shape[1], int(case["n_text_before"])
    ratios = [round(float(case[f"{x}_ratio"]), 6) for x in ("dominant", "contextual")]
    dominant_num, contextual_num = int(ratios[0] * tokens), max(int(ratios[1] * tokens), 1)
    dominant = top_k_mask(score, dominant_num)
    targets, owner = contextual_targets(metric, dominant, contextual_num)
    kept, _ = compact_index(dominant.scatter(1, targets, True))
    sequence = _sequence(case, kept[0], tokens)
    embeds = case["inputs_embeds"].clone()
    embeds[before : before + tokens] = fold(embeds[None, before : before + tokens], owner)[0]
    return {
        "score": score[0],
        "key_metric": metric[0],
        "dominant_num": dominant_num,
        "contextual_num": contextual_num,
        "kept_sequence_positions": sequence,
        "out_embeds": embeds[sequence],
    }


def _valid(grid: tuple[int, int], side: int, size: tuple[int, int]) -> Tensor:
    """Which tokens of a canvas of tiles LLaVA's unpadding leaves, bool (canvas rows, canvas columns).

    Args:
        grid: Rows and columns of tiles.
        side: Tokens per side of a tile.
        size: Height and width of the picture.
    """
    (rows, columns), (height, width) = (n * side for n in grid), size
    valid = torch.zeros(rows, columns, dtype=torch.bool)
    if width / height > columns / rows:
        pad = (rows - int(height * (columns / width))) // 2
        valid[pad : rows - pad] = True
    else:
        pad = (columns - int(width * (rows / height))) // 2
        valid[:, pad : columns - pad] = True
    return valid


def _by_tile(canvas: Tensor, grid: tuple[int, int]) -> Tensor:
    """Values on a canvas (rows, columns) as (tiles, tokens of a tile)."""
    tiles = canvas.unflatten(1, (grid[1], -1)).unflatten(0, (grid[0], -1)).transpose(1, 2)
    return tiles.flatten(2).flatten(0, 1)


def hired(case: Case) -> dict[str, Any]:
    rate, late = round(float(case["token_budget_rate"]), 6), case["cls_row_late"]
    if int(case["mode"]) == 0:
        scores = late.sum(0)[None, 1:]
        keep = min(scores.shape[1], int(scores.shape[1] * rate))
        mask = (
            HiRED(keep=keep).decide(Pictures((1, 1, scores.shape[1]), scores[..., None], attention=scores), None).mask
        )
        return {"kept_mask": mask[0].long(), "kept_indices": compact_index(mask)[0][0]}
    alpha, out = round(float(case["alpha"]), 6), []
    early, late = (case[f"cls_row_{x}"].sum(1)[:, 1:].split(case["num_crops"].tolist()) for x in ("early", "late"))
    for picture, crops in enumerate(case["num_crops"].tolist()):
        tokens = early[picture].shape[1]
        total = int(crops * tokens * rate)
        full = min(int(total * alpha), tokens)
        region = strips(tokens, crops - 1)
        budget = min(total - full, (crops - 1) * tokens)
        shares = crop_shares(early[picture][:1], region, crops - 1, budget, alpha)[0].clamp_max(tokens)
        mask = top_k_mask(late[picture], torch.cat((torch.tensor([full]), shares)))
        # The authors' packing takes rows of tiles for columns.
        columns, rows = case["grid_rows_cols_true"][picture].tolist()
        size = case["image_sizes_hw"][picture].tolist()
        there = mask.clone()
        there[1:] &= _by_tile(_valid((rows, columns), round(tokens**0.5), size), (rows, columns))
        crop, token = stitched_order(there, rows, columns)
        out.append((shares, mask.long(), torch.full(crop.shape, float(picture)), crop, token))
    shares, mask, of, crop, token = (torch.cat(x) for x in zip(*out, strict=True))
    return {
        "sub_budgets": shares,
        "kept_mask": mask,
        "out_image": of,
        "out_source_crop": crop,
        "out_source_token": token,
        "feature_lens": [len(x[3]) for x in out],
    }


def globalcom2(case: Case) -> dict[str, Any]:
    q, keys, features = case["q_cls"], case["keys"], case["features"]
    logits = (q[:, :, None] * q.shape[-1] ** -0.5 @ keys.transpose(-1, -2)).mean((1, 2))[:, 1:]
    ratio, side = round(float(case["retention_ratio"]), 6), int(case["side"])
    columns, rows = case["grid_wh"].tolist()
    width, height = case["image_size_wh"].tolist()
    tokens, grid = side * side, (rows, columns)
    scales = crop_scales(logits[:1], (side, side), grid, ratio, float(case["temperature"]))[0]
    valid = _valid(grid, side, (height, width))
    shown = guidance(logits[:1], (side, side), (int(valid.any(1).sum()), int(valid.any(0).sum())))[0]
    number = torch.full(valid.shape, -1)
    number[valid] = torch.arange(int(valid.sum()))
    places = [x[x >= 0] for x in _by_tile(number, grid)]
    inside = [x.nonzero()[:, 0] for x in _by_tile(valid, grid)]
    kept = [int(len(x) * scale) for x, scale in zip(inside, scales, strict=True)]
    best = [
        combined(z[x][None], shown[place][None])[0].argsort(descending=True, stable=True)[:n]
        for z, x, place, n in zip(logits[1:], inside, places, kept, strict=True)
    ]
    # The authors put a tile's n-th valid token on its n-th cell.
    cells = torch.full((rows * columns, tokens), -1)
    for cell, x, chosen in zip(cells, inside, best, strict=True):
        cell[chosen] = x[chosen]
    slots = torch.arange(cells.numel()).view(rows, columns, side, side).transpose(1, 2).reshape(rows * side, -1)
    crop = torch.cat((slots // tokens + 1, torch.full((rows * side, 1), -1)), 1)
    token = torch.cat((cells.flatten()[slots], torch.full((rows * side, 1), -1)), 1)
    there = (token >= 0) | (crop < 0)
    first = logits[0].argsort(descending=True, stable=True)[: int(tokens * ratio)]
    crop, token = torch.cat((torch.zeros_like(first), crop[there])), torch.cat((first, token[there]))
    sides = [
        torch.stack((x.view(side, side).any(0).sum(), x.view(side, side).any(1).sum())) for x in _by_tile(valid, grid)
    ]
    return {
        "cls_logits": logits,
        "crop_scales": scales,
        "crop_valid_wh": torch.stack(sides),
        "crop_num_kept": kept,
        "global_crop_scores_flat": torch.cat([shown[place] for place in places]),
        "crop_kept_valid_indices_desc_flat": torch.cat(best),
        "out_source_crop": crop,
        "out_source_token": token,
        "out_tokens": torch.where(crop[:, None] < 0, case["image_newline"], features[crop.clamp_min(0), token]),
    }


def turbo(case: Case) -> dict[str, Any]:
    merges, protected, alpha, beta, gamma, merged = (round(x, 6) for x in case["params"].tolist())
    value = case["attn_cls"] * attention_weight(alpha, beta, gamma, int(merged))
    step = turbo_step(case["metric"], value, int(merges), int(protected))
    x, sizes = merge_by_owner(case["x"], step.owner, step.groups, case["size"].squeeze(-1))
    return {"owner": step.owner, "x_merged": x, "size_merged": sizes.unsqueeze(-1)}


def mustdrop(case: Case) -> dict[str, Any]:
    side, tau, share = (round(x, 6) for x in case["params"][:3].tolist())
    cls, x = case["hidden"][:, :1], case["hidden"][:, 1:]
    tokens = x.shape[1]
    windows = windows_of((1, round(tokens**0.5), round(tokens**0.5)), int(side))
    scores = likeness(x, windows)
    merges = int((scores >= tau).sum(1).min())  # the authors' code merges as many in all tiles
    chosen = top_k_mask(scores, merges)
    owner = window_owner(chosen, windows, tokens)
    new = average(x, owner)
    # [CLS], merged windows by likeness, then all others.
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :merges]
    merged = owner.gather(1, windows[best, 0])
    members = torch.zeros_like(owner).scatter_add(1, owner, torch.ones_like(owner))
    others, _ = compact_index(members == 1)
    order = torch.cat((merged, others), 1)
    sizes = torch.cat((torch.ones(len(x), 1), members.gather(1, order)), 1)
    keys = key_set(case["cls_attn"].mean(1)[:, 1:], share)
    return {
        "merged": torch.cat((cls, gather_rows(new, order)), 1),
        "size": sizes.unsqueeze(-1),
        "num_merged_windows": merges,
        "key_idx": keys,
    } | _mustdrop_filter(case, keys)


def _mustdrop_filter(case: Case, keys: Tensor) -> dict[str, Any]:
    """The filter in the decoder, stage by stage: all tiles of the batch are one row."""
    tokens = case["base_attn_s0"].shape[2]
    share, word = (round(x, 6) for x in case["params"][5:].tolist())
    marked = torch.zeros(tokens, dtype=torch.bool)
    marked[(keys + tokens // len(keys) * torch.arange(len(keys))[:, None]).flatten()] = True
    alive, out, entered = torch.arange(tokens), {}, []
    for i in range(4):
        entered.append(alive)
        seen = case[f"base_attn_s{i}"].mean(0)[:, alive]
        passed = passes(
            seen.sum(0)[None], seen.amax(0)[None], torch.ones(1, len(alive), dtype=torch.bool), (share, word)
        )
        alive = alive[passed[0] | marked[alive]]
        out |= {f"pass_filter_s{i}": passed[0].nonzero()[:, 0], f"kept_global_s{i}": alive}
        out[f"key_pos_s{i}"] = marked[alive].nonzero()[:, 0]
    before, behind = (int(x) for x in case["params"][3:5])
    for i, tokens_of in enumerate(entered):
        visual = torch.nn.functional.pad(torch.ones(1, len(tokens_of), dtype=torch.bool), (before, behind))
        there = torch.nn.functional.pad(torch.isin(tokens_of, alive)[None], (before, behind), value=True)
        mask = MustDrop(thresholds=(share, word)).still_there(_held(visual, there)).mask | ~visual
        out[f"cache_keep_s{i}"] = mask[0, 0].nonzero()[:, 0]
    return out


def _held(visual: Tensor, alive: Tensor) -> CacheEntries:
    """Entries of one head, of which the visual ones are candidates, and which of them are still there."""
    x = torch.zeros(1, 1, visual.shape[1], 1)
    count, none = visual.sum(1, keepdim=True), torch.zeros(1, 0, dtype=torch.long)
    everywhere = torch.ones_like(visual)
    return CacheEntries(
        0, x[:, :, :0], none, None, x, x, 1.0, everywhere, visual[:, None], visual.long() - 1, count, {}, alive=alive
    )


ADAPTERS = {
    "globalcom2": globalcom2,
    "hired": hired,
    "hiprune": hiprune,
    "mustdrop": mustdrop,
    "turbo": turbo,
    "visionzip": visionzip,
    "vtc_cls": vtc_cls,
}
INPUTS = {
    "globalcom2": {"q_cls", "keys", "features", "image_newline", "grid_wh", "image_size_wh"},
    "hired": {
        *("cls_row_early", "cls_row_late", "image_sizes_hw", "pinpoints_hw"),
        *("grid_rows_cols_true", "num_crops"),
    },
    "hiprune": {
        *(f"{x}_{y}" for x in "qk" for y in ("object", "deep")),
        *("grid_thw", "grid_wh", "image_size_wh", "window_index", "reverse_indices"),
    },
    "mustdrop": {"hidden", "cls_attn", "params", *(f"base_attn_s{i}" for i in range(4))},
    "turbo": {"x", "metric", "attn_cls", "size", "params"},
    "visionzip": {
        *("q", "q_cls", "k", "keys", "hidden_states", "crop_tokens", "keep_idx", "inputs_embeds"),
        *("grid_thw", "window_index", "reverse_indices"),
    },
    "vtc_cls": {"cls_rows", "features"},
}
SCALAR_OUTPUTS = {
    ("mustdrop", "num_merged_windows"),
    *(("hiprune", name) for name in ("budget", "n_anchor", "num_kept")),
    *(("visionzip", name) for name in ("dominant_num", "contextual_num")),
}
TOLERANCE = {"mustdrop": 1e-5, "turbo": 1e-5}
