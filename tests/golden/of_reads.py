"""Golden cases of methods that compute or read less of an attention, and drop nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtprune.engine.parts import attend
from vtprune.methods import Cells, LayerSlots, Part, Where
from vtprune.methods.tidaldecode import most_wanted
from vtprune.methods.token_sparse_attention import TokenSparseAttention, drift, stable
from vtprune.methods.tokenselect import cast, elected, middle, published_query

Case = dict[str, Tensor]


def slots_of(q: Tensor, k: Tensor, v: Tensor) -> LayerSlots:
    """A prompt of visual tokens only, of one map."""
    rows, heads, length, dim = q.shape
    at, nothing = torch.arange(length).expand(rows, -1), torch.empty(rows, 0, dtype=torch.long)
    everything = torch.ones(rows, 1, length, dtype=torch.bool)
    where = Where(Cells(*[torch.zeros_like(at)] * 5), length, nothing)
    sizes = {"layer": 0, "past": 0, "heads": heads, "kv_heads": k.shape[1]}
    lists = {"text": nothing, "visual": at, "visual_entries": everything, "valid": None, "where": where}
    return LayerSlots(**sizes, **lists, memory={}, held={}, queries=q, keys=k, values=v, scale=dim**-0.5)


def token_sparse_attention(case: Case) -> dict[str, Any]:
    if "hidden_states" in case:
        states = case["hidden_states"]
        mean = drift(states[:-1], states[1:]).mean(1)
        shares = {name.removeprefix("quantile_"): float(x) for name, x in case.items() if name.startswith("quantile_")}
        layers = {f"layers_{j}": torch.tensor(stable(mean, share), dtype=torch.long) for j, share in shares.items()}
        return {"drift_mean": mean, "drift_norm": mean / mean.sum(), **layers}
    q, k, v = (case[x][None] for x in "qkv")
    window, length = int(case["window"]), q.shape[2]
    method = TokenSparseAttention(
        keep=int(case["min_tokens"]),
        coverage=round(float(case["coverage"]), 6),
        window=window,
        kernel=int(case["kernel_size"]),
        text=True,
    )
    slots = slots_of(q, k, v)
    decision = method.decide(slots)
    parts = (Part(),) if decision is None else decision.parts
    out = {
        "selected": int(decision is not None),
        "compressed_len": length,
        "pooled_score": method.smooth(slots, *method.groups(slots))[0, :, : max(length - window, 0)],
        "attn_output": attend(q, k, v, parts, scale=slots.scale)[0].flatten(1),
    }
    if decision is not None:
        out |= {"indices": parts[0].slots[0], "compressed_len": parts[0].slots.shape[2]}
    return out


def tokenselect(case: Case) -> dict[str, Any]:
    first, last, top = (int(case[x]) for x in ("n_init", "n_local", "top_k"))
    q, k = case["q_prerope"].transpose(0, 1)[None], case["k_prerope"].transpose(0, 1)[None]
    length, count = k.shape[2], first + top + last
    query = published_query(q, last, float(case["rope_base"]))
    candidate = torch.ones(1, length, dtype=torch.bool)
    out: dict[str, Any] = {"returns_none": int(count >= length), "query_mean_rotated": query[0]}
    for name, heads in (("", "grouped"), ("_official_mod", "modulo")):
        votes = cast(query, k, 1.0, middle(candidate, first, last), heads)
        kernel = max(int(case["kernel_size"]), 1)
        mask = elected(votes, candidate, torch.tensor([min(count, length)]), min(count, length), first, last, kernel)
        out |= {f"vote_score{name}": votes[0, first : length - last], f"retrieved_idx{name}": mask[0].nonzero()[:, 0]}
    return out


def tidaldecode(case: Case) -> dict[str, Any]:
    out: dict[str, Any] = {}
    top, choosing = int(case["top_k"]), {int(case["sparse_layer_start"]), int(case["correction_layer"])}
    mask: Tensor | None = None
    for layer in range(int(case["n_layers"])):
        q, k, v = (case[f"{x}_{layer}"] for x in "qkv")
        q, length, scale = q[:, :, None], k.shape[2], q.shape[-1] ** -0.5
        read = None if mask is None or layer in choosing else mask
        if layer in choosing:
            among, count = torch.ones(1, length, dtype=torch.bool), torch.tensor([min(length, top)])
            mask = most_wanted(q[:, :, 0], k, scale, among, count, "head")
        entries = None if read is None else torch.stack([x.nonzero()[:, 0] for x in read[0]])[None]
        out[f"out_{layer}"] = attend(q, k, v, (Part(entries=entries, padded=False),), scale=scale)[0, 0]
        out[f"mask_{layer}"] = torch.full((q.shape[1], length), -1) if mask is None else mask[0].long()
    return out


ADAPTERS = {
    "token_sparse_attention": token_sparse_attention,
    "tokenselect": tokenselect,
    "tidaldecode": tidaldecode,
}
INPUTS = {
    "token_sparse_attention": {"q", "k", "v", "hidden_states"},
    "tokenselect": {"q_prerope", "k_prerope"},
    "tidaldecode": {f"{x}_{layer}" for x in "qkv" for layer in range(100)},
}
SCALAR_OUTPUTS = {
    ("token_sparse_attention", "selected"),
    ("token_sparse_attention", "compressed_len"),
    ("tokenselect", "returns_none"),
}
