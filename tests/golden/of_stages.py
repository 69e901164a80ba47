"""Golden cases of methods that cut at several decoder layers: whole prefills and what is decoded behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.golden.loop import Loop
from vtprune.methods.pyramiddrop import PyramidDrop, asking_rows

Case = dict[str, Tensor]


def prefill(case: Case, cut: Callable[[Loop, int, int], Tensor], behind: Callable[[Loop, int], None]) -> dict[str, Any]:
    """Run a case: at each of its cuts `cut` says what stays (visual tokens,), and `behind` looks at what ran."""
    loop = Loop(case, int(case["image_start"]), int(case["image_tokens"]))
    cuts = {layer: stage for stage, layer in enumerate(case["stage_layers"].tolist())}
    out: dict[str, Any] = {}
    for layer in range(len(loop.model.layers)):
        if layer in cuts:
            stage = cuts[layer]
            slots = loop.cut(layer, cut(loop, stage, layer))
            out |= {f"keep_index_{stage}": slots, f"position_ids_after_{stage}": loop.positions[0]}
        loop.run(layer)
        behind(loop, layer)
    out["last_hidden"] = loop.hidden()
    if "decode_embeds" in case:
        out["decode_hidden"] = loop.decode(case["decode_embeds"], case["inputs_embeds"].shape[0])
        out["cache_len_per_layer_after_decode"] = loop.lengths()
    return out


def pyramiddrop(case: Case) -> dict[str, Any]:
    layers, kept = case["stage_layers"].tolist(), case["stage_keep"].tolist()
    method = PyramidDrop(layers=layers, shares=kept)
    labels, memory, out = case.get("labels"), {}, {}

    def cut(loop: Loop, stage: int, layer: int) -> Tensor:
        nonlocal labels
        last = torch.tensor([loop.x.shape[1] - 1])
        scores = loop.attention(layer, last if labels is None else asking_rows(labels[None])[0].nonzero()[:, 0])
        mask = method.decide(
            loop.tokens(layer, scores, memory), dict(zip(layers, range(len(layers)), strict=True))
        ).mask[0]
        out[f"score_{stage}"] = scores[0]
        if labels is not None:
            end = loop.first + loop.visual
            labels = torch.cat((labels[: loop.first], labels[loop.first : end][mask], labels[end:]))
            out["labels_after"] = labels
        return mask

    return prefill(case, cut, lambda loop, layer: None) | out


ADAPTERS = {"pyramiddrop": pyramiddrop}
STAGES = {"inputs_embeds", "stage_layers", "stage_ratios", "stage_in", "stage_keep", "decode_embeds", "labels"}
INPUTS = {"pyramiddrop": STAGES}
