"""How far a model with methods is from the untouched one, without any right answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl_divergence(pruned: Tensor, unpruned: Tensor) -> list[float]:
    """KL divergence of the next token's distribution from the unpruned model's, KL(unpruned || pruned), in nats.

    Tokens that generation rules out (logits of minus infinity) count in neither.

    Args:
        pruned: Logits, (rows, vocabulary).
        unpruned: The same of the unpruned model.
    """
    pruned, unpruned = _exact(pruned), _exact(unpruned)
    there = pruned.isfinite() & unpruned.isfinite()
    new, old = (x.masked_fill(~there, -math.inf).log_softmax(-1) for x in (pruned, unpruned))
    terms = old.exp() * (old - new).masked_fill(~there, 0)
    return terms.sum(-1).clamp(min=0).tolist()


def logit_error(pruned: Tensor, unpruned: Tensor) -> list[float]:
    """Root mean square of the difference of logits, each centred on its mean, as a shift of all changes nothing.

    Args:
        pruned: Logits, (rows, vocabulary).
        unpruned: The same of the unpruned model.
    """
    pruned, unpruned = _exact(pruned), _exact(unpruned)
    there = pruned.isfinite() & unpruned.isfinite()
    apart = (pruned - unpruned).masked_fill(~there, 0)
    count = there.sum(-1, keepdim=True)
    centred = (apart - apart.sum(-1, keepdim=True) / count).masked_fill(~there, 0)
    return (centred.square().sum(-1) / count.squeeze(-1)).sqrt().tolist()


def _exact(logits: Tensor) -> Tensor:
    """In double precision, on the host: not every device has it."""
    return logits.to("cpu", torch.float64)
