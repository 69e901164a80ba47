"""Golden cases of methods that hold keys and values in few bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.golden.of_cache import entries_of
from vtprune.engine.packing import KEYS, VALUES, Level
from vtprune.kernels import channel_scale, compact_index, gather_rows, quantise, unpack_codes
from vtprune.methods._entries import age, received
from vtprune.methods._probes import mean_received, shown_by
from vtprune.methods.zipcache import FULL, mixed

Case = dict[str, Tensor]


def zipcache(case: Case) -> dict[str, Any]:
    k, v, ids = case["k"], case["v"], case["probe_ids"][None]
    high, low = (int(case[f"bits_{x}important"]) for x in ("", "un"))
    ratio = round(float(case["unimportant_ratio"]), 6)
    entries = shown_by(entries_of(case["q"], k, v), ids, torch.ones_like(ids, dtype=torch.bool))
    sums = received(entries)
    code = sums / (age(entries.valid) + 1)[:, None]
    share = torch.tensor([(high * (1 - ratio) + low * ratio) / FULL])
    bits = mixed(code, entries.candidate, share, (high, low))
    chosen, others = (compact_index((bits == width)[0])[0][None] for width in (high, low))
    others = others.gather(2, code.gather(2, others).argsort(dim=2, stable=True))
    found = {
        "accum_score": sums,
        "norm_score_code": code,
        "norm_score_paper": mean_received(entries),
        "unimportant_ids_topk_order": others,
        "important_ids": chosen,
    }
    scale = channel_scale(v.transpose(1, 2).flatten(2))
    found["v_channel_scale"] = scale
    wholes = torch.zeros_like(k), torch.zeros_like(v)
    for name, index, width in (("imp", chosen, high), ("unimp", others, low)):
        own = [gather_rows(x[0], index[0]).transpose(0, 1).flatten(1)[None] for x in (k, v)]
        keys, values = quantise(own[0], width, "channel"), quantise(own[1], width, "token", scale=scale)
        level = Level(index, (keys, values))
        level.put(KEYS, None, wholes[KEYS], 0)
        level.put(VALUES, scale, wholes[VALUES], 0)
        k_codes, v_codes = (unpack_codes(x.packed, x.bits, x.channels).long() for x in (keys, values))
        found |= {f"k_{name}_q": k_codes[None], f"k_{name}_min": keys.low[None], f"k_{name}_scale": keys.step[None]}
        found |= {f"v_{name}_q": v_codes, f"v_{name}_min": values.low, f"v_{name}_step": values.step}
        found |= {f"k_{name}_packed": keys.packed.long()[None], f"v_{name}_packed": values.packed.long()}
    return found | {"k_dequant": wholes[KEYS], "v_dequant": wholes[VALUES]}


ADAPTERS = {"zipcache": zipcache}
INPUTS = {"zipcache": {"q", "k", "v", "probe_ids"}}
