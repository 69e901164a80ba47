"""Golden cases of methods that act between the blocks of the vision encoder."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.engine.merging import Running
from vtprune.kernels import bipartite_matching, gather_rows, merge_by_owner, owner_map
from vtprune.methods import EncoderTokens
from vtprune.methods.ats import sampled, significance
from vtprune.methods.diffrate import compress
from vtprune.methods.pitome import (
    PiToMe,
    energy,
    energy_halves_matching,
    energy_matching,
    energy_owner,
    removed,
)
from vtprune.methods.tinychart import TinyChart
from vtprune.rates import candidates, kept_tokens, token_mask, token_probability

Case = dict[str, Tensor]


def _membership(owner: Tensor, groups: int) -> Tensor:
    return F.one_hot(owner, groups).transpose(1, 2).float()


def pitome(case: Case) -> dict[str, Any]:
    return _pitome_tower(case) if "w" in case else _pitome_step(case)


def _pitome_step(case: Case) -> dict[str, Any]:
    metric, x, mode, cls = case["metric"], case["x"], int(case["mode"]), int(case["class_token"])
    ratio, margin, alpha = float(case["ratio"]), float(case["margin"]), float(case["alpha"])
    patches = metric[:, cls:]
    merges = removed(metric.shape[1] if mode == 1 else patches.shape[1], ratio)
    out: dict[str, Any] = {"r": merges}
    if mode == 1:
        matching = bipartite_matching(metric, merges, protected=cls)
        owner, groups = owner_map(matching, metric.shape[1], protected=cls)
        out |= {"src_idx": matching.sources, "dst_idx": matching.destinations, "unm_idx": matching.unmerged}
        out["energy"] = energy(metric, margin, alpha)
    else:
        owner, groups = energy_owner(metric, merges, margin, alpha, cls, spares=mode == 0)
        out["energy"] = energy(patches, margin, alpha)
    if mode == 0:
        found = energy_matching(patches, merges, margin, alpha)
        out |= {"protected_idx": found.spared, "a_idx": found.sources, "b_idx": found.targets}
        out["dst_idx"] = found.destinations
        alone = torch.cat((torch.arange(cls).expand(len(x), -1), found.spared + cls, found.targets + cls), 1)
        out["x_prune"] = gather_rows(x, alone)
    if mode == 2:
        first, second, pairs = energy_halves_matching(patches, merges, margin, alpha)
        out |= {"a_idx": first, "b_idx": second, "src_idx": pairs.sources, "dst_idx": pairs.destinations}
        alone = torch.cat((first.gather(1, pairs.unmerged), second), 1) + cls
        out |= {"unm_idx": pairs.unmerged}
        out["x_prune"] = gather_rows(x, torch.cat((torch.arange(cls).expand(len(x), -1), alone), 1))
    weighted, sizes = merge_by_owner(x, owner, groups, case["size_in"].squeeze(-1))
    out |= {"x_wavg": weighted, "size_wavg": sizes.unsqueeze(-1), "source": _membership(owner, groups)}
    return out | {"x_mean": merge_by_owner(x, owner, groups)[0]}


def _pitome_tower(case: Case) -> dict[str, Any]:
    x, out = case["x"], {}
    counts, patches = [x.shape[1]], x.shape[1] - 1
    method = PiToMe(ratio=float(case["ratio"]))
    for layer, weights in enumerate(case["w"]):
        x = x + 0.3 * torch.tanh(x @ weights)
        tokens = EncoderTokens(layer, x, torch.ones(x.shape[:2]), 1, patches, x)
        group = method.decide(tokens, layers=24, all_layers=24, early=13)
        x, _ = merge_by_owner(x, group.owner, group.groups)
        out[f"x_after_layer_{layer}"] = x
        counts.append(x.shape[1])
    return {"counts": counts, **out}


def ats(case: Case) -> dict[str, Any]:
    there = case["policy_in"].squeeze(-1) > 0
    tokens = case["attn_logits"].shape[-1]
    seen = there[:, None, None] | torch.eye(tokens, dtype=torch.bool)
    attention = case["attn_logits"].masked_fill(~seen, -torch.inf).softmax(-1)
    values = case["v"] * there[:, None, :, None]
    scores = significance(attention[:, :, 0, 1:].sum(1), values.transpose(1, 2).flatten(2)[:, 1:])
    # Equal scores, which only padding has, come there by falling index.
    order = scores.shape[1] - 1 - scores.flip(1).argsort(dim=1, stable=True)
    mask = sampled(scores, int(case["n_ref_tokens"]) - 1, crop=True) & there[:, 1:]
    slots = int(case["n_tokens"])
    kept = torch.full((len(mask), slots), -1)
    for row, (by_score, taken) in enumerate(zip(order, mask, strict=True)):
        index = torch.cat((torch.zeros(1, dtype=torch.int64), by_score[taken[by_score]] + 1))
        kept[row, : len(index)] = index
    filled = (kept >= 0).float().unsqueeze(-1)
    attended = (attention @ values).transpose(1, 2).flatten(2)
    return {
        "attn": attention,
        "sorted_scores": scores.gather(1, order),
        "sorted_indices": order,
        "kept_idx": kept,
        "n_kept": (kept >= 0).sum(1).float(),
        "policy_out": filled,
        "selected_x": gather_rows(case["raw_x"], kept.clamp_min(0)) * filled,
        "attn_v": gather_rows(attended, kept.clamp_min(0)) * filled,
    }


def diffrate(case: Case) -> dict[str, Any]:
    return _diffrate_step(case) if "x" in case else _diffrate_rates(case)


def _diffrate_rates(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (n for n in case if n.startswith("logits_")):
        j = name.removeprefix("logits_")
        patches, step = int(case[f"patch_number_{j}"]), int(case[f"granularity_{j}"])
        options = candidates(patches, step)
        with torch.enable_grad():
            logits = case[name].clone().requires_grad_()
            probability = logits.softmax(0)
            kept, mask = kept_tokens(probability, options), token_mask(probability, options)
            weighted = (torch.arange(len(mask)) * mask).sum()
            (by_mask,) = torch.autograd.grad(weighted, logits, retain_graph=True)
            (by_count,) = torch.autograd.grad(kept, logits, retain_graph=True)
        probability = probability.detach()
        limited = token_mask(probability, options, int(case[f"mask_limit_{j}"]))
        found |= {
            f"candidates_{j}": options,
            f"probs_{j}": probability,
            f"kept_{j}": kept.detach().long(),
            f"token_probability_{j}": token_probability(probability, options),
            f"mask_{j}": mask.detach().long(),
            f"mask_limited_{j}": limited.long(),
            f"grad_mask_weighted_{j}": by_mask,
            f"grad_kept_{j}": by_count,
        }
    for name in (n for n in case if n.startswith("init_kept")):
        patches, step = (*map(int, re.findall(r"\d+", name)), 1)[:2]
        options = candidates(patches, step)
        found[name] = kept_tokens(torch.zeros(len(options)).softmax(0), options).long()
    return found


def _diffrate_step(case: Case) -> dict[str, Any]:
    x, sizes = case["x"], case["size_in"].squeeze(-1)
    patches = x.shape[1] - 1
    importance = case["cls_attn_rows"].mean(1)[:, 1:]
    pruned = min(int(case["prune_kept"]) - 1, patches)
    merged = min(int(case["merge_kept"]) - 1, pruned)
    group = compress(x, importance, sizes, pruned, merged, protected=1)
    running = Running()
    running.sizes = sizes
    (out,) = running.follow(group, x)
    membership = _membership(group.owner, group.groups)
    if group.keep is not None:
        membership = membership * group.keep[:, None]
    return {
        "order": importance.argsort(dim=1, descending=True, stable=True),
        "x_out": out,
        "size_out": running.sizes.unsqueeze(-1),
        "source": membership,
    }


def tinychart(case: Case) -> dict[str, Any]:
    x, heads, running, counts = case["x_in"], int(case["num_heads"]), Running(), []
    method = TinyChart(r=int(case["r"]))
    for layer in range(int(case["num_layers"])):

        def linear(name: str, x: Tensor, layer: int = layer) -> Tensor:
            return F.linear(x, case[f"{layer}__{name}__weight"], case[f"{layer}__{name}__bias"])

        def norm(name: str, x: Tensor, layer: int = layer) -> Tensor:
            weight, bias = case[f"{layer}__{name}__weight"], case[f"{layer}__{name}__bias"]
            return F.layer_norm(x, x.shape[-1:], weight, bias, float(case["eps"]))

        h = norm("layer_norm1", x)
        q, k, v = (
            linear(f"self_attn__{p}_proj", h).unflatten(-1, (heads, -1)).transpose(1, 2) for p in ("q", "k", "v")
        )
        bias = running.key_bias(True)
        attended = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias[:, None, None])
        x = x + linear("self_attn__out_proj", attended.transpose(1, 2).flatten(2))
        tokens = EncoderTokens(layer, k.mean(1), running.sizes_of(x), 0, case["x_in"].shape[1])
        group = method.decide(tokens, layers=int(case["num_layers"]))
        (x,) = [x] if group is None else running.follow(group, x)
        x = x + linear("mlp__fc2", F.gelu(linear("mlp__fc1", norm("layer_norm2", x)), approximate="tanh"))
        counts.append(x.shape[1])
    source = _membership(running.owner, x.shape[1])
    return {"x_out": x, "size_out": running.sizes.unsqueeze(-1), "source": source, "counts": counts}


ADAPTERS = {"ats": ats, "diffrate": diffrate, "pitome": pitome, "tinychart": tinychart}


_PARTS = [f"self_attn__{p}_proj" for p in "qkv"] + ["self_attn__out_proj", "layer_norm1", "layer_norm2"]
_PARTS += ["mlp__fc1", "mlp__fc2"]
_WEIGHTS = {f"{n}__{part}__{kind}" for n in range(32) for part in _PARTS for kind in ("weight", "bias")}

INPUTS = {
    "ats": {"attn_logits", "v", "raw_x", "policy_in"},
    "diffrate": {"x", "cls_attn_rows", "size_in", *(f"logits_{j}" for j in range(8))},
    "pitome": {"metric", "x", "w", "margins", "size_in"},
    "tinychart": {"x_in", *_WEIGHTS},
}
SCALAR_OUTPUTS = {("pitome", "r"), *(("diffrate", f"kept_{j}") for j in range(8))}
SCALAR_OUTPUTS |= {
    ("diffrate", f"init_kept_{name}") for name in ("196_1", "576_1", "576_4", "196_g1", "576_g1", "576_g4")
}
TOLERANCE = {"ats": 2e-4, "diffrate": 2e-4, "pitome": 2e-4, "tinychart": 1e-3}
