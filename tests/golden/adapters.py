"""One function per method: from the arrays of a golden case to its outputs, by the library's own functions.

The folder's README says what the arrays are. `INPUTS` names those that go in, beside single numbers; everything else in
a file must come out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vtprune.budget import token_count
from vtprune.compat import build_mask
from vtprune.kernels import (
    attention_scores,
    bipartite_matching,
    compact_index,
    gather_rows,
    greedy_select,
    merge_by_owner,
    unmerge,
)
from vtprune.methods import Pictures, VisualTokens
from vtprune.methods.divprune import DivPrune
from vtprune.methods.fastervlm import FasterVLM, stitched_order
from vtprune.methods.fastv import FastV
from vtprune.methods.fourier import low_pass
from vtprune.methods.tome import expand_schedule, merge_step

Case = dict[str, Tensor]


def fastervlm(case: Case) -> dict[str, Any]:
    features, keep = case["features"], int(case["visual_token_num"])
    q = case["q_cls"].unsqueeze(2)
    scores = attention_scores(q, case["keys"])[:, 1:]
    mask = FasterVLM(keep=keep).decide(Pictures(None, features, attention=scores)).mask
    index, _ = compact_index(mask)
    out = {
        "attn_cls": attention_scores(q, case["keys"], reduce_heads=None)[..., 1:],
        "scores": scores,
        "kept_indices": index,
        "kept_features": gather_rows(features, index),
    }
    if "grid_wh" in case:
        columns, rows = case["grid_wh"].tolist()
        crop, token = stitched_order(mask, rows, columns)
        out |= {"out_source_crop": crop, "out_source_token": token, "out_tokens": features[crop, token]}
    return out


def divprune(case: Case) -> dict[str, Any]:
    features, keep = case["features"][None], float(case["ratio"])
    budget = token_count(keep, features.shape[1])
    mask = DivPrune(keep=keep).decide(Pictures(None, features, projected=features)).mask
    return {
        "budget": budget,
        "selected_order": greedy_select(features, budget)[0],
        "kept_sorted": compact_index(mask)[0][0],
    }


def fourier(case: Case) -> dict[str, Any]:
    features, grid, small = case["features"], tuple(case["grid_hw"].tolist()), tuple(case["reserve_hw"].tolist())
    norm = "ortho" if int(case["norm_ortho"]) else "none"
    out = low_pass(features, grid, small, norm=norm, gain="official")
    half = low_pass(features.bfloat16(), grid, small, norm=norm, gain="official")
    return {"out_float32": out, "out_exact_float32": out, "out_bf16_as_float32": half.float()}


def tome(case: Case) -> dict[str, Any]:
    if "metric" in case:
        return _tome_step(case)
    if "w_qkv" in case:
        return _tome_blocks(case)
    return {
        "r_const_24_L": expand_schedule(8, 24),
        "r_dec": expand_schedule(13, 12, -1.0),
        "r_inc": expand_schedule(13, 12, 1.0),
        "r_half": expand_schedule(23, 24, -0.5),
        "r_list": expand_schedule([4, 3, 2], 6),
    }


def _membership(owner: Tensor, groups: int) -> Tensor:
    return F.one_hot(owner, groups).transpose(1, 2).float()


def _tome_step(case: Case) -> dict[str, Any]:
    metric, x, r = case["metric"], case["x"], int(case["r"])
    protected = int(case["class_token"]) + int(case["distill_token"])
    matching = bipartite_matching(metric, r, protected=protected)
    step = merge_step(metric, r, protected)
    merged, sizes = merge_by_owner(x, step.owner, step.groups, case["size_in"].squeeze(-1))
    return {
        "r_effective": matching.sources.shape[1],
        "src_idx": matching.sources,
        "dst_idx": matching.destinations,
        "unm_idx": matching.unmerged,
        "x_out": merged,
        "size_out": sizes.unsqueeze(-1),
        "source": _membership(step.owner, step.groups),
        "x_mean": merge_by_owner(x, step.owner, step.groups)[0],
        "x_unmerged": unmerge(merged, step.owner),
    }


def _tome_blocks(case: Case) -> dict[str, Any]:
    x, merges = case["x"], int(case.get("r", 8))
    heads = int(case["num_heads"]) if "num_heads" in case else x.shape[2] // int(case["head_dim"])
    sizes, out = torch.ones(x.shape[:2]), {}
    whole = torch.arange(x.shape[1]).expand(x.shape[:2])
    for i in range(3):
        q, k, v = F.linear(x, case["w_qkv"]).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=sizes.log()[:, None, None])
        out[f"attn_out_{i}"] = F.linear(attended.transpose(1, 2).flatten(2), case["w_proj"], case["b_proj"])
        out[f"metric_{i}"] = k.mean(1)
        step = merge_step(k.mean(1), merges, protected=1)
        x, sizes = merge_by_owner(x + out[f"attn_out_{i}"], step.owner, step.groups, sizes)
        whole = step.owner.gather(1, whole)
        out |= {f"x_{i}": x, f"size_{i}": sizes.unsqueeze(-1), f"source_{i}": _membership(whole, step.groups)}
    return out


def fastv(case: Case) -> dict[str, Any]:
    return _fastv_selection(case) if "q" in case else _fastv_prefill(case)


def _fastv_cut(attention: Tensor, case: Case, layer: int) -> dict[str, Tensor]:
    """Image scores (visual tokens,), kept visual tokens and kept slots, from attention over all slots (1, slots)."""
    first, count = int(case["sys_length"]), int(case["image_token_length"])
    scores = attention[:, first : first + count]
    seen = torch.ones_like(scores, dtype=torch.bool)
    tokens = VisualTokens(layer, seen, torch.zeros_like(seen, dtype=torch.int64), torch.tensor([[count]]), scores, {})
    kept = FastV(layer=layer, keep=int(case["attention_rank"])).decide(tokens).mask
    slots = torch.ones_like(attention, dtype=torch.bool)
    slots[:, first : first + count] = kept
    return {"image_score": scores[0], "kept": kept[0], "slots": slots}


def _fastv_selection(case: Case) -> dict[str, Any]:
    q, k = case["q"][None, :, -1:], case["k"][None]
    cut = _fastv_cut(attention_scores(q, k), case, layer=1)
    visual = cut["kept"].nonzero()[:, 0]
    by_score = cut["image_score"][visual].argsort(descending=True)
    return {
        "attn_last_row": attention_scores(q, k, reduce_heads=None)[0],
        "image_score": cut["image_score"],
        "top_index": int(case["sys_length"]) + visual[by_score],
        "keep_index": compact_index(cut["slots"])[0][0],
    }


def _fastv_prefill(case: Case) -> dict[str, Any]:
    model = llama(case)
    cut_at, x = int(case["K"]), case["inputs_embeds"][None]
    slots = x.shape[1]
    positions = torch.arange(slots)[None]
    rotary = model.rotary_emb(x, positions)
    causal = torch.ones(1, 1, slots, slots, dtype=torch.bool).tril()
    for layer in model.layers[: cut_at - 1]:
        x = layer(x, attention_mask=causal, position_embeddings=rotary)
    before = model.layers[cut_at - 1]
    normed = before.input_layernorm(x)
    q, k = (
        projection(normed).unflatten(-1, (int(case["num_heads"]), -1)).transpose(1, 2)
        for projection in (before.self_attn.q_proj, before.self_attn.k_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, *rotary)
    cut = _fastv_cut(attention_scores(q[:, :, -1:], k), case, cut_at)
    index, _ = compact_index(cut["slots"])
    x = before(x, attention_mask=causal, position_embeddings=rotary)
    short, short_rotary = gather_rows(x, index), tuple(gather_rows(part, index) for part in rotary)
    short_causal = causal[..., : index.shape[1], : index.shape[1]]
    blind = build_mask(model.config, x, cut["slots"], 0)
    for layer in model.layers[cut_at:]:
        short = layer(short, attention_mask=short_causal, position_embeddings=short_rotary)
        x = layer(x, attention_mask=blind, position_embeddings=rotary)
    return {
        "image_score": cut["image_score"],
        "keep_index": index[0],
        "position_ids_after": gather_rows(positions, index)[0],
        "last_hidden_inplace": model.norm(short)[0],
        "last_hidden_mask": model.norm(x)[0],
    }


def llama(case: Case) -> LlamaModel:
    """The decoder of a case, with its weights."""
    heads = int(case["num_heads"])
    config = LlamaConfig(
        vocab_size=1,
        hidden_size=case["inputs_embeds"].shape[1],
        intermediate_size=case["w.layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=int(case["num_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        rms_norm_eps=float(case["rms_norm_eps"]),
        rope_parameters={"rope_type": "default", "rope_theta": float(case["rope_theta"])},
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    model = LlamaModel(config).eval()
    weights = {name.removeprefix("w."): value for name, value in case.items() if name.startswith("w.")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["embed_tokens.weight"], missing
    assert not unexpected, unexpected
    return model


ADAPTERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "divprune": divprune,
    "fastervlm": fastervlm,
    "fastv": fastv,
    "fourier": fourier,
    "tome": tome,
}

# Folders whose name is not the method's.
METHOD_OF_FOLDER = {"fourier_vlm": "fourier"}

INPUTS = {
    "divprune": {"features"},
    "fastervlm": {"q_cls", "keys", "features", "image_size_wh", "grid_wh"},
    "fastv": {"q", "k", "inputs_embeds"},
    "fourier": {"features", "grid_hw", "reserve_hw"},
    "tome": {"metric", "x", "size_in", "w_qkv", "w_proj", "b_proj"},
}
SCALAR_OUTPUTS = {("divprune", "budget"), ("tome", "r_effective")}

# Absolute tolerance, and those of single arrays as (absolute, relative).
TOLERANCE = {"tome": 2e-4}
ARRAY_TOLERANCE = {("fourier", "out_bf16_as_float32"): (1e-4, 1e-2)}

# Further methods, by group: modules of this folder that hold tables of the same names.
for _file in sorted(Path(__file__).parent.glob("of_*.py")):
    _group = importlib.import_module(f"tests.golden.{_file.stem}")
    ADAPTERS |= _group.ADAPTERS
    INPUTS |= _group.INPUTS
    METHOD_OF_FOLDER |= getattr(_group, "METHOD_OF_FOLDER", {})
    SCALAR_OUTPUTS |= getattr(_group, "SCALAR_OUTPUTS", set())
    TOLERANCE |= getattr(_group, "TOLERANCE", {})
    ARRAY_TOLERANCE |= getattr(_group, "ARRAY_TOLERANCE", {})


def outputs(method: str, case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the adapter of `method` on the arrays of one case."""
    with torch.no_grad():
        out = ADAPTERS[method]({name: torch.from_numpy(np.asarray(value)) for name, value in case.items()})
    return {name: np.asarray(value) for name, value in out.items()}
