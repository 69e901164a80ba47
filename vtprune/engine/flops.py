"""Prefill FLOPs by the dense formulas, with the real number of tokens in every layer. A multiply-add counts as two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from vtprune.integrations.base import EncoderCall, Integration


def linear_flops(module: nn.Module) -> int:
    """FLOPs of a module's linear layers for one token."""
    return sum(2 * m.in_features * m.out_features for m in module.modules() if isinstance(m, nn.Linear))


def attention_flops(queries: int, keys: int, width: int) -> int:
    """FLOPs of scores and weighted sum for `queries` x `keys`, no discount for the causal half; width = heads * dim."""
    return 4 * queries * keys * width


def decoder_flops(
    integration: Integration, layer: nn.Module, slots: Sequence[int], past: int, states: Sequence[int] | None = None
) -> int:
    """FLOPs of a decoder layer.

    Args:
        integration: The model's family.
        layer: The layer.
        slots: Per row, slots that are no padding.
        past: Slots of earlier calls.
        states: Per row, hidden states that the slots share; None: one each.
    """
    attention = sum(attention_flops(n, past + n, integration.decoder_width(layer)) for n in slots)
    return linear_flops(layer) * sum(states or slots) + attention


def encoder_flops(integration: Integration, call: EncoderCall, tokens: Mapping[int, tuple[int, int]]) -> int:
    """FLOPs of the blocks of the encoder in a call, which runs once per picture, however many rows show it.

    Args:
        integration: The model's family.
        call: The call.
        tokens: By block, tokens per tile in attention and in MLP, from the first block that merges some on.
    """
    total = 0
    now: tuple[int, int] | None = None
    for i, layer in enumerate(integration.all_encoder_layers):
        mlp = linear_flops(layer.get_submodule("mlp"))
        rest = linear_flops(layer) - mlp
        now = tokens.get(i, None if now is None else (now[1], now[1]))
        for n in integration.encoder_lengths(i, call):
            attended, fed = now or (n, n)
            attention = attention_flops(attended, attended, integration.encoder_width)
            total += attended * rest + fed * mlp + attention
    return total


def projector_flops(integration: Integration) -> int:
    """FLOPs of the projector for one token."""
    return sum(linear_flops(module) for module in integration.projectors)
