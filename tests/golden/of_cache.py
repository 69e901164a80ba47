"""Golden cases of methods that evict from the key-value cache."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from vtprune.budget import pyramid
from vtprune.compat import rotate
from vtprune.kernels import compact_index, gather_rows
from vtprune.methods import CacheEntries
from vtprune.methods._entries import blocks
from vtprune.methods.a2sf import A2SF
from vtprune.methods.ems import likeness_weights, mean_received, merged, nearest
from vtprune.methods.h2o import H2O, accumulated, heavy_and_recent, simulated_mask
from vtprune.methods.keyformer import Keyformer
from vtprune.methods.snapkv import SnapKV, observed, smoothed
from vtprune.methods.spatten import SpAtten, logits, with_room

Case = dict[str, Tensor]


def entries_of(q: Tensor, k: Tensor, v: Tensor, first: int = 0, memory: Any = None, arrived: int = 0) -> CacheEntries:
    """Entries of which all are candidates, and the queries of those from number `first` on."""
    rows, heads, length = k.shape[:3]
    valid = torch.ones(rows, length, dtype=torch.bool)
    at = torch.arange(length)[first:].expand(rows, -1)
    picture = torch.zeros(rows, length, dtype=torch.long)
    prompt = torch.full((rows, 1), arrived or length)
    candidate = valid[:, None].expand(-1, heads, -1)
    scale, memory = q.shape[-1] ** -0.5, {} if memory is None else memory
    return CacheEntries(0, q, at, None, k, v, scale, valid, candidate, picture, prompt, memory)


def outputs_of(entries: CacheEntries, adjust: Any = None) -> Tensor:
    """What the queries attend to: (rows, heads, n, dim)."""
    found = [torch.einsum("rhgqk,rhkd->rhgqd", p, entries.values) for _, p in blocks(entries, adjust)]
    return torch.cat(found, 3).flatten(1, 2)


def taken(mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Marked entries (rows, kv_heads, entries) of tensors (rows, kv_heads, entries, ...)."""
    index, _ = compact_index(mask.flatten(0, 1))
    return [gather_rows(x.flatten(0, 1), index).unflatten(0, mask.shape[:2]) for x in tensors]


def decoded(case: Case, method: Any, arrived: int) -> dict[str, Any]:
    """A prompt, and tokens one by one: what is kept at each stage, its score, and what each token attends to."""
    q, k, v, start = case["q"], case["k"], case["v"], int(case["prefill_len"])
    slot, memory = torch.arange(q.shape[2]).expand(k.shape[:3]), {}
    held = [x[:, :, :start] for x in (k, v, slot)]
    kept, scores, outputs = [], [], []
    for end in range(start, q.shape[2] + 1):
        first = 0 if end == start else held[0].shape[2] - 1
        entries = entries_of(q[:, :, end - 1 : end] if first else q[:, :, :start], *held[:2], first, memory, arrived)
        if first:
            outputs.append(outputs_of(entries)[0, :, 0])
        held = taken(method.decide(entries).mask, *held, memory["score_of_entries"])
        memory["score_of_entries"] = torch.nn.functional.pad(held[3], (0, 1))
        kept.append(held[2][0])
        scores.append(held[3][0])
        held = [torch.cat((x, new[:, :, end : end + 1]), 2) for x, new in zip(held, (k, v, slot), strict=False)]
    return {"kept_idx": torch.stack(kept), "kept_score": torch.stack(scores), "decode_out": torch.stack(outputs)}


def h2o(case: Case) -> dict[str, Any]:
    return (_h2o_decode, _h2o_groups, _h2o_simulation)[int(case["variant"])](case)


def _h2o_decode(case: Case) -> dict[str, Any]:
    heavy, recent = int(case["hh_size"]), int(case["recent_size"])
    return decoded(case, H2O(keep=heavy + recent, recent=recent / (heavy + recent), text=True), 10**6)


def _h2o_groups(case: Case) -> dict[str, Any]:
    entries = entries_of(case["q"], case["k"], case["v"])
    heavy, recent = (torch.tensor([int(case[f"{x}_size"])]) for x in ("hh", "recent"))
    H2O(keep=1.0, text=True).decide(entries)
    score = entries.memory["score_of_entries"]
    mask = heavy_and_recent(score, entries.candidate, heavy, recent)
    slot, kept = taken(mask, torch.arange(score.shape[2]).expand_as(score), score)
    return {"score_full": score[0], "kept_idx": slot[0], "kept_score": kept[0]}


def _hiding(mask: Tensor) -> Any:
    """Hides entries, bool (heads, entries), from all queries."""
    return lambda logits, _: logits.masked_fill(~mask[None, :, None, None], -1e30)


def _staged(rows: list[Tensor], width: int, fill: float) -> Tensor:
    """Rows of growing length (heads, n), one per stage, as (stages, heads, width)."""
    return torch.stack([torch.nn.functional.pad(x, (0, width - x.shape[1]), value=fill) for x in rows])


def _h2o_simulation(case: Case) -> dict[str, Any]:
    q, k, v, start = case["q"], case["k"], case["v"], int(case["prefill_len"])
    heavy, recent = (int(start * round(float(case[f"{x}_ratio"]), 6)) for x in ("heavy", "recent"))
    memory: dict[str, Tensor] = {}
    masks, scores, outputs = [], [], []
    for end in range(start, q.shape[2] + 1):
        first = 0 if end == start else end - 1
        entries = entries_of(q[:, :, first:end], k[:, :, :end], v[:, :, :end], first, memory)
        hide = _hiding(masks[-1]) if first else None
        accumulated(entries, adjust=hide)
        if first:
            outputs.append(outputs_of(entries, hide)[0, :, 0].flatten())
        mask, score = simulated_mask(memory["score_of_entries"][0], heavy, recent)
        memory["score_of_entries"] = torch.nn.functional.pad(score, (0, 1))[None]
        masks.append(mask)
        scores.append(score)
    return {
        "next_mask": _staged([x.long() for x in masks], q.shape[2] + 1, -1),
        "score": _staged(scores, q.shape[2], torch.nan),
        "decode_out": torch.stack(outputs),
        "heavy_budget": heavy,
        "recent_budget": recent,
    }


def kvpress(case: Case) -> dict[str, Any]:
    """What that library's presses make of one layer, as far as the methods here do the same."""
    q = rotate(case["q_prerope"], case["cos"], case["sin"])
    entries = entries_of(q, case["keys"], case["values"])
    return _snapkv(case, entries) | _observed(case, entries) | _merging(case, entries)


def _snapkv(case: Case, entries: CacheEntries) -> dict[str, Any]:
    window, kernel, kept = (int(case[x]) for x in ("window_size", "kernel_size", "n_kept"))
    seen, last = observed(entries, window)
    score = smoothed(seen, torch.where(last, -1, 0), kernel).masked_fill(last[:, None], -torch.inf)
    mask = SnapKV(keep=kept, window=window, kernel=kernel, text=True).decide(entries).mask
    mean = score.shape[2] * (1 - round(float(case["compression_ratio"]), 6))
    layers = len(case["pyramid_budgets"])
    return {
        "snapkv_score": score.masked_fill(last[:, None], float(score.max()) + 1),
        "snapkv_kept": taken(mask, _slots(entries))[0],
        "pyramid_budgets": pyramid(mean, layers, 20, most=score.shape[2] - window, least=window),
    }


def _observed(case: Case, entries: CacheEntries) -> dict[str, Any]:
    """Mean attention over the queries that see an entry."""
    heads = entries.queries.shape[1] // entries.keys.shape[1]
    mask = H2O(keep=int(case["n_kept"]), queries="all", mean=True, text=True).decide(entries).mask
    return {
        "observed_score": mean_received(entries) / heads,
        "observed_kept": taken(mask, _slots(entries))[0],
    }


def _merging(case: Case, entries: CacheEntries) -> dict[str, Any]:
    """All that leaves is merged into what stays, by likeness of keys; what stays is given."""
    stays = torch.zeros_like(entries.candidate).scatter(2, case["knorm_kept"], True)
    target, cosine = nearest(entries.keys, stays, ~stays, entries.picture)
    weight = likeness_weights(entries.values, target, cosine, ~stays)
    return {"merging_knorm_values_sorted": taken(stays, merged(entries.values, target, weight))[0]}


def _slots(entries: CacheEntries) -> Tensor:
    return torch.arange(entries.keys.shape[2]).expand(entries.keys.shape[:3])


def a2sf(case: Case) -> dict[str, Any]:
    forgetting, recent = round(float(case["forgetting_factor"]), 6), int(case["recent_budget"])
    if int(case["variant"]) == 1:
        total = int(case["select_budget"]) + recent
        method = A2SF(keep=total, forgetting=forgetting, recent=recent / total, text=True, decodes=True)
        return decoded(case, method, 10**6)
    entries = entries_of(case["q"], case["k"], case["v"])
    total = int(case["total_budget"])
    method = A2SF(keep=total, forgetting=forgetting, recent=min(recent / total, 1.0), text=True)
    mask, score = method.decide(entries).mask, entries.memory["score_of_entries"]
    (slot,) = taken(mask, torch.arange(score.shape[2]).expand_as(score))
    return {"score": score, "kept_idx": slot, "attn_out": outputs_of(entries)}


def spatten(case: Case) -> dict[str, Any]:
    """Layers stand in the place of rows: each decides by itself."""
    q, k = case["q"], case["k"]
    start, coming = int(case["start_size"]), int(case["num_coming"])
    important, recent = (torch.full((len(q),), int(case[f"{x}_size"])) for x in ("important", "recent"))
    entries = entries_of(q, k, k, k.shape[2] - q.shape[2])
    SpAtten(rule="turns", text=True).at_turns(entries)
    mask = with_room(entries.memory["logits_of_entries"], entries.candidate, start, important, recent, coming)
    slot, keys = taken(mask, _slots(entries), k)
    single = [dataclasses.replace(entries, queries=x, query_at=torch.zeros(len(q), 1).long()) for x in q.split(1, 2)]
    return {"raw_logits": torch.stack([logits(x) for x in single], 2), "kept_idx": slot, "kept_k": keys}


def _of_block(noise: Tensor, here: slice) -> Tensor:
    return noise[:, :, :, here]


def keyformer(case: Case) -> dict[str, Any]:
    q, k, v, start = case["q"], case["k"], case["v"], int(case["prefill_len"])
    percent, share = (round(float(case[f"{x}_pct"]), 6) / 100 for x in ("kv_cache", "recent"))
    method = Keyformer(keep=int(start * percent + 1e-6), recent=share, text=True, frozen=True)
    slot, memory = torch.arange(q.shape[2]).expand(k.shape[:3]), {}
    held = [x[:, :, :start] for x in (k, v, slot)]
    masks, scores, outputs = [], [], []
    for end in range(start, q.shape[2] + 1):
        first = 0 if end == start else held[0].shape[2] - 1
        entries = entries_of(q[:, :, end - 1 : end] if first else q[:, :, :start], *held[:2], first, memory, 10**6)
        if first:
            outputs.append(outputs_of(entries)[0, :, 0].flatten())
        noise = case["noise_decode"][end - start - 1, :, None, :end] if first else case["noise_prefill"]
        noise = noise[None].gather(3, held[2][:, :, None].expand(-1, -1, noise.shape[1], -1))[:, :, None]
        tau = torch.tensor([float(case["tau_init"]) + (end - start) * float(case["tau_delta"])])
        mask = method.step(entries, functools.partial(_of_block, noise), tau).mask
        held = taken(mask, *held, memory["score_of_entries"])
        memory["score_of_entries"] = torch.nn.functional.pad(held[3], (0, 1))
        seen = torch.zeros(k.shape[1], end, dtype=torch.long).scatter(1, held[2][0], 1)
        masks.append(torch.nn.functional.pad(seen, (0, 1), value=1))
        scores.append(torch.zeros(k.shape[1], end).scatter(1, held[2][0], held[3][0]))
        held = [torch.cat((x, new[:, :, end : end + 1]), 2) for x, new in zip(held, (k, v, slot), strict=False)]
    return {
        "next_mask": _staged(masks, q.shape[2] + 1, -1),
        "score": _staged(scores, q.shape[2], torch.nan),
        "decode_out": torch.stack(outputs),
    }


ADAPTERS = {"a2sf": a2sf, "h2o": h2o, "keyformer": keyformer, "snapkv": kvpress, "spatten": spatten}
METHOD_OF_FOLDER = {"kvpress": "snapkv"}
INPUTS = {
    "a2sf": {"q", "k", "v"},
    "keyformer": {"q", "k", "v", "noise_prefill", "noise_decode"},
    "h2o": {"q", "k", "v"},
    "spatten": {"q", "k"},
    # What other methods of that library put out is left aside.
    "snapkv": {
        *("q_prerope", "keys", "values", "cos", "sin", "inv_freq"),
        *(f"{x}_{y}" for x in ("ea", "knorm", "tova") for y in ("score", "kept")),
        *("ea_nocov_novnorm_score", "keydiff_score", "streaming_score", "rerotated_keys_knorm", "snapkv_adakv_masked"),
    },
}
