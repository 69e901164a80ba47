"""Golden cases of GemFilter: what the last query of a layer matches, smoothed, and what is kept of all tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtprune.methods import TextRows, VisualTokens
from vtprune.methods.gemfilter import GemFilter, match, smoothed

Case = dict[str, Tensor]


def gemfilter(case: Case) -> dict[str, Any]:
    query, keys = case["q_last"], case["k"]
    scores = match(query, keys)
    one = torch.zeros_like(scores, dtype=torch.int64)
    pooled = smoothed(scores, one, 5)
    at = torch.arange(scores.shape[1])[None]
    row = TextRows(query[:, :, None], keys, 1.0, at[:, -1:], None, at, (query, query), (query, query))
    arrived = torch.tensor([[scores.shape[1]]])
    tokens = VisualTokens(1, one == 0, one, arrived, None, {}, last_row=row)
    kept = GemFilter(keep=int(case["topk"])).decide(tokens).mask[0].nonzero()[:, 0]
    return {
        "raw_score": scores,
        "pooled_score": pooled,
        "topk_order": kept[pooled[0, kept].argsort(descending=True, stable=True)],
        "kept_sorted": kept,
    }


ADAPTERS = {"gemfilter": gemfilter}
INPUTS = {"gemfilter": {"q_last", "k"}}
