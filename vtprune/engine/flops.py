"""Prefill FLOPs by the dense formulas, with the real number of tokens in every layer. A multiply-add counts as two."""

from __future__ import annotations

from torch import nn


def linear_flops(module: nn.Module) -> int:
    """FLOPs of a module's linear layers for one token."""
    return sum(2 * m.in_features * m.out_features for m in module.modules() if isinstance(m, nn.Linear))


def attention_flops(queries: int, keys: int, width: int) -> int:
    """FLOPs of scores and weighted sum for `queries` x `keys`, no discount for the causal half; width = heads * dim."""
    return 4 * queries * keys * width
