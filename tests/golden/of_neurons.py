"""Golden cases of CoreMatching: neurons that tokens share, the elbow of their counts, and core neurons per token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtprune.methods.corematching import above_elbow, elbow, neurons_per_token, reference_rows, shared_neurons

Case = dict[str, Tensor]


def corematching(case: Case) -> dict[str, Any]:
    first, count, reference = case["params"].tolist()
    active = case["act"][None]
    rows = reference_rows(active.shape[:2], None, -reference)
    counts = shared_neurons(active, rows)[:, first : first + count]
    there = torch.ones_like(counts, dtype=torch.bool)
    index, value = elbow(counts, there)
    return {
        "co_count": counts[0],
        "elbow_index": index[0],
        "elbow_value": value[0],
        "kept_gt": above_elbow(counts, there, "strict")[0].nonzero()[:, 0],
        "kept_ge": above_elbow(counts, there, "inclusive")[0].nonzero()[:, 0],
        "neuron_limit_per_token": neurons_per_token(active, None, 0.2)[0],
    }


ADAPTERS = {"corematching": corematching}
INPUTS = {"corematching": {"act", "params"}}
SCALAR_OUTPUTS = {("corematching", name) for name in ("elbow_index", "elbow_value", "neuron_limit_per_token")}
