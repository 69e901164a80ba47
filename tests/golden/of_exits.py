"""Golden cases of DyVTE: what its routers see and say layer by layer, what an exit leaves, and labels for training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vtprune.exit_labels import answer_losses, exit_labels
from vtprune.methods import VisualTokens
from vtprune.methods._exits import leave, mean_and_last
from vtprune.methods.dyvte import exits, route

Case = dict[str, Tensor]


def dyvte(case: Case) -> dict[str, Any]:
    return _labels(case) if "lm_labels" in case else _exit(case)


def _exit(case: Case) -> dict[str, Any]:
    hidden, first, count = case["hidden"], int(case["vis_start"]), int(case["vis_len"])
    closing = hidden[:, first + count :]
    features, known = mean_and_last(closing, torch.ones(closing.shape[:2], dtype=torch.bool))
    logits = torch.cat([route(features[i : i + 1], case["w1"][i], case["w2"][i]) for i in range(len(hidden))])
    leaving = known & exits(logits)
    layer = int(leaving.long().argmax()) if leaving.any() else -1
    late = torch.arange(len(hidden)) > (layer if layer >= 0 else len(hidden))
    seen = torch.ones(1, count, dtype=torch.bool)
    tokens = VisualTokens(layer + 1, seen, seen.long() - 1, torch.tensor([[count]]), None, {})
    slots = torch.ones(hidden.shape[1], dtype=torch.bool)
    slots[first : first + count] = leave(tokens, leaving.any()[None]).mask[0]
    out = {
        "logits_all": logits,
        "feats_until_exit": features.masked_fill(late[:, None], torch.nan),
        "logits_until_exit": logits.masked_fill(late[:, None], torch.nan),
        "exit_layer": layer,
        "kept_positions": slots.nonzero()[:, 0],
    }
    return out | {"hidden_after_exit": hidden[layer, slots]}


def _labels(case: Case) -> dict[str, Any]:
    full, blind, answers = case["logits_full"], case["logits_exit"], case["lm_labels"]
    labels = exit_labels(full, blind, answers)
    return {
        "loss_full": answer_losses(full, answers),
        "loss_exit": answer_losses(blind, answers),
        "gate_labels": labels,
        "gate_loss": F.cross_entropy(case["gate_logits"], labels),
    }


ADAPTERS = {"dyvte": dyvte}
INPUTS = {"dyvte": {"hidden", "w1", "w2", "lm_labels", "logits_full", "logits_exit", "gate_logits"}}
SCALAR_OUTPUTS = {("dyvte", "exit_layer"), ("dyvte", "gate_loss")}
