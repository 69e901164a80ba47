"""Golden cases of merging over the frames of a video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtprune.methods._segments import alike_next
from vtprune.methods.base import VisualTokens
from vtprune.methods.holitom import HoliTom, blend, official_order

Case = dict[str, Tensor]


def holitom(case: Case) -> dict[str, Any]:
    return _inner(case) if "hidden" in case else _outer(case)


def _inner(case: Case) -> dict[str, Any]:
    hidden, first, count = case["hidden"], int(case["start"]), int(case["length"])
    here = slice(first, first + count)
    number = torch.zeros(1, count, dtype=torch.int64)
    attention = case["attn_last_query"][None, here]
    tokens = VisualTokens(18, number == 0, number, torch.tensor([[count]]), attention, {}, hidden[:, here])
    decision = HoliTom(inner_layer=18, inner_keep=1 - float(case["r"])).merge(tokens)
    slots = torch.ones(hidden.shape[1], dtype=torch.bool)
    slots[here] = decision.mask[0]
    merged = torch.cat((hidden[:, :first], decision.mix(hidden[:, here]), hidden[:, first + count :]), 1)
    return {"keep_indices": slots.nonzero()[:, 0], "out": merged[:, slots]}


def _outer(case: Case) -> dict[str, Any]:
    features, received, columns = case["features"][None], case["attn"][None], int(case["grid"])
    share, lines = float(case["retain_ratio"]), bool(case["grid_newline"])
    method = HoliTom(
        keep=share,
        tau=float(case["tau"]),
        beta=float(case["beta"]),
        contextual=float(case["D"]),
        neighbours=int(case["K"]),
        window=int(case["max_window"]),
    )
    found = method.reduce(features, received, share)
    order = official_order(found, columns if lines else None)
    source = blend(features.flatten(1, 2), found.still_owner, found.owner, method.beta)[0]
    per_frame = columns * columns
    if lines:
        rows = source.view(-1, columns, source.shape[1])
        source = torch.cat((rows, case["newline"].expand(len(rows), 1, -1)), 1).flatten(0, 1)
        per_frame += columns
    plan = found.plans[0]
    first, moving = torch.from_numpy(plan.table[0]), torch.from_numpy(plan.table[5])
    begins = first.unique()
    return {
        "frame_sim": alike_next(features)[0],
        "segments": plan.segments,
        "total_reduced": float(plan.saved),
        "adjusted_retain_ratio": plan.share,
        "static_count": features.shape[2] - moving[begins],
        "dynamic_per_frame": moving[begins],
        "segment_lengths": first[order // per_frame].bincount(minlength=len(first))[begins],
        "out": source[order],
    }


ADAPTERS = {"holitom": holitom}
INPUTS = {"holitom": {"features", "attn", "newline", "hidden", "attn_last_query"}}
SCALAR_OUTPUTS = {("holitom", "total_reduced"), ("holitom", "adjusted_retain_ratio")}
