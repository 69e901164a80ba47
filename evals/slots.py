"""Dense sequences for any of the tiny models: a prefix with its visual tokens, then slots that see it and themselves.

`vtprune.evals.dense` has the idea, for tiny-llava alone. Here the attention of training is in plain products, too: on
a CPU their backward pass takes a fraction of the fused kernel's time, and no slot is compared with another.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

PLAIN, SLOTS = "vtprune_plain", "vtprune_slots"
"""Names of the attention functions, for the configurations of a tower and of a decoder in training."""

_HIDDEN = -1e4


@dataclass(frozen=True)
class Layout:
    """Where the visual tokens of a prompt are.

    Attributes:
        ids: (length,) the prompt up to the question, with a placeholder for every visual token.
        visual: Places of the visual tokens.
        positions: (length,), or (3, length) for M-RoPE.
        start: Position of the token that follows.
    """

    ids: Tensor
    visual: Tensor
    positions: Tensor
    start: int


def decode(model: Any, features: Tensor, layout: Layout, ids: Tensor, middle: int) -> tuple[Tensor, Tensor]:
    """Run the decoder over dense sequences; its attention has to be `SLOTS`.

    Args:
        model: The decoder without its head.
        features: Projected visual tokens, (batch, tokens, width).
        layout: The prompt's prefix.
        ids: Slots, (batch, questions, slot).
        middle: Number of a decoder layer.

    Returns:
        The last hidden states of the slots, (batch, questions, slot, width), and those of the visual tokens behind
        layer `middle`, (batch, tokens, width).
    """
    batch, questions, slot = ids.shape
    prefix, device = len(layout.ids), features.device
    before = model.embed_tokens(layout.ids.to(device)).to(features.dtype).expand(batch, -1, -1).clone()
    before[:, layout.visual.to(device)] = features
    embeds = torch.cat([before, model.embed_tokens(ids.flatten(1)).to(features.dtype)], dim=1)
    behind = (layout.start + torch.arange(slot)).repeat(questions)
    positions = torch.cat([layout.positions, behind.expand(*layout.positions.shape[:-1], -1)], dim=-1).to(device)
    positions = positions.unsqueeze(-2).expand(*positions.shape[:-1], batch, -1)
    caught: dict[str, Tensor] = {}

    def catch(module: nn.Module, arguments: Any, output: Any) -> None:
        caught["states"] = output[0] if isinstance(output, tuple) else output

    hook = model.layers[middle].register_forward_hook(catch)
    try:
        # A mask of four dimensions is handed on as it is; this one only says that there is no other.
        mask = torch.ones((batch, 1, 1, embeds.shape[1]), dtype=torch.bool, device=device)
        states = model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            slots=(prefix, questions, slot),
        ).last_hidden_state
    finally:
        hook.remove()
    return states[:, prefix:].unflatten(1, (questions, slot)), caught["states"][:, layout.visual.to(device)]


def products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention as products, in the type of `value`; the query comes scaled."""
    scores = query.to(value.dtype) @ key.to(value.dtype).transpose(-1, -2)
    return torch.softmax(scores if bias is None else scores + bias.to(value.dtype), dim=-1) @ value


def _plain(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    with torch.autocast(value.device.type, enabled=False):
        return products(query * scaling, key, value).transpose(1, 2).contiguous(), None


def _slots(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    scaling: float,
    slots: tuple[int, int, int],
    **_: Any,
) -> tuple[Tensor, None]:
    """Each slot looks at the prefix and at itself: two small products instead of one over all slots."""
    prefix, questions, slot = slots
    kind, device = value.dtype, value.device
    with torch.autocast(device.type, enabled=False):
        parts = (query * scaling).to(kind), key.to(kind), value
        (q, qs), (k, ks), (v, vs) = ((part[:, :, :prefix], part[:, :, prefix:]) for part in parts)
        before = products(q, k, v, _causal(prefix, device))
        inner = [part.unflatten(2, (questions, slot)) for part in (qs, ks, vs)]
        own = inner[0] @ inner[1].transpose(-1, -2) + _causal(slot, device).to(kind)
        weights = torch.softmax(torch.cat([qs @ k.transpose(-1, -2), own.flatten(2, 3)], dim=-1), dim=-1)
        within = (weights[..., prefix:].unflatten(2, (questions, slot)) @ inner[2]).flatten(2, 3)
        behind = weights[..., :prefix] @ v + within
        return torch.cat([before, behind], dim=2).transpose(1, 2).contiguous(), None


@functools.lru_cache(maxsize=64)
def _causal(length: int, device: torch.device) -> Tensor:
    return torch.full((length, length), _HIDDEN, device=device).triu(1)


AttentionInterface.register(PLAIN, _plain)
AttentionInterface.register(SLOTS, _slots)
