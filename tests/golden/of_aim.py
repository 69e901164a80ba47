"""Golden cases of AIM: rounds of merging, and pruning from layer to layer of the decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.golden import adapters
from vtprune.methods._rounds import merge, merge_rounds
from vtprune.methods._select import top_k_mask
from vtprune.methods.aim import importance, left

Case = dict[str, Tensor]


def aim(case: Case) -> dict[str, Any]:
    if "inputs_embeds" in case:
        return _prefill(case)
    if "prev_mask" in case:
        return _pruning(case)
    if "r_per_step" in case:
        rounds = merge_rounds(case["features"], case["r_per_step"].tolist())
        return {"counts_after_step": [one.tokens for one in rounds], "out": merge(case["features"], rounds)[-1]}
    metric = case.get("metric", case["x"])
    rounds = merge_rounds(metric, case["rounds"].tolist())
    return {f"out_{i}": x for i, x in enumerate(merge(case["x"], rounds))} | {
        f"metric_out_{i}": x for i, x in enumerate(merge(metric, rounds))
    }


def _visual(case: Case) -> slice:
    return slice(int(case["sys_length"]), int(case["sys_length"]) + int(case["image_token_length"]))


def _cut(case: Case, queries: Tensor, keys: Tensor, before: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Importance and what is left, (slots,) each; what left earlier still votes."""
    here, merged = _visual(case), torch.tensor([int(case["image_token_length"])])
    ranks = importance(queries[None], keys[None], queries.shape[-1] ** -0.5, valid=before[None])
    after = before.clone()
    after[here] = top_k_mask(ranks[:, here], left(merged, share), before[None, here])[0]
    return ranks[0], after


def _pruning(case: Case) -> dict[str, Any]:
    share, merged = float(case["rate"]), case["image_token_length"]
    ranks, after = _cut(case, case["q"], case["k"], case["prev_mask"].bool(), share)
    return {
        "importance": ranks,
        "keep_count_total": len(after) - merged + left(merged, share),
        "new_mask": after.long(),
    }


def _prefill(case: Case) -> dict[str, Any]:
    model, x = adapters.llama(case), case["inputs_embeds"][None]
    heads, slots = int(case["num_heads"]), x.shape[1]
    x = torch.cat((x, case["decode_embed"][None, None]), 1)  # the step after it, which no slot before it sees
    rotary = model.rotary_emb(x, torch.arange(slots + 1)[None])
    causal = torch.ones(slots + 1, slots + 1, dtype=torch.bool).tril()
    there = torch.ones(slots, dtype=torch.bool)
    masks = []
    for layer, share in zip(model.layers, case["retain_rate"].tolist(), strict=True):
        normed = layer.input_layernorm(x)[:, :slots]
        q, k = (
            projection(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *(part[:, :slots] for part in rotary))
        seen = causal & torch.cat((there, there.new_ones(1)))
        x = layer(x, attention_mask=seen[None, None], position_embeddings=rotary)
        _, there = _cut(case, q[0], k[0], there, share)
        masks.append(there.long())
    hidden = model.norm(x)[0]
    return {"mask_after_layer": torch.stack(masks), "last_hidden": hidden[:slots], "decode_hidden": hidden[slots]}


ADAPTERS = {"aim": aim}
METHOD_OF_FOLDER = {"aim_video": "aim"}
INPUTS = {
    "aim": {
        "x",
        "metric",
        "rounds",
        "features",
        "grid",
        "r_per_step",
        "q",
        "k",
        "prev_mask",
        "inputs_embeds",
        "retain_rate",
        "decode_embed",
    }
}
SCALAR_OUTPUTS = {("aim", "keep_count_total")}
ARRAY_TOLERANCE = {("aim", "importance"): (1e-9, 1e-3)}  # most are below 1e-6
