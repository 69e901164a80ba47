"""A plain loop over decoder layers that computes less inside them: heads one by one, softmax and mask in full."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.reference import Fed
from vtprune.compat import rotate


class Rule:
    """What is computed in decoder layers; by itself, everything.

    Args:
        visual: Bool (slots,), of a whole conversation.
    """

    def __init__(self, visual: Tensor) -> None:
        self.visual = visual
        self.length = len(visual)

    def sees(self, layer: int, head: int) -> Tensor:
        """Bool (slots, slots), the keys that each query's softmax runs over."""
        return torch.ones(self.length, self.length, dtype=torch.bool).tril()

    def factor(self, layer: int, head: int) -> Tensor:
        """(slots, slots), what weights are multiplied by behind the softmax."""
        return torch.ones(self.length, self.length)

    def given(self, layer: int) -> Tensor:
        """(slots,), False where the output projection adds nothing."""
        return torch.ones(self.length, dtype=torch.bool)

    def channels(self, layer: int, most: int) -> Tensor:
        """(slots,), how many channels of the MLP each uses."""
        return torch.full((self.length,), most)


def layer_loop(model: Any, fed: Fed, positions: Tensor, rule: Rule) -> Tensor:
    """Logits of all slots."""
    language_model = model.model.language_model
    hidden = fed.embeds
    rotary = language_model.rotary_emb(hidden, position_ids=positions if len(positions) == 1 else positions[:, None])
    for i, layer in enumerate(language_model.layers):
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        q, k, v = (getattr(attention, f"{x}_proj")(normed).unflatten(-1, (-1, attention.head_dim)) for x in "qkv")
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        q, k = (rotate(x.transpose(1, 2), *rotary)[0] for x in (q, k))
        v, group = v.transpose(1, 2)[0], len(q) // len(k)
        heads = []
        for h, query in enumerate(q):
            logits = (query @ k[h // group].T * attention.scaling).masked_fill(~rule.sees(i, h), float("-inf"))
            weights = logits.softmax(-1).nan_to_num() * rule.factor(i, h)  # a softmax over nothing brings nothing
            heads.append(weights @ v[h // group])
        hidden = hidden + attention.o_proj(torch.cat(heads, -1))[None] * rule.given(i)[:, None]
        normed, mlp = layer.post_attention_layernorm(hidden), layer.mlp
        inner = mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed)
        most = inner.shape[-1]
        hidden = hidden + mlp.down_proj(inner * (torch.arange(most) < rule.channels(i, most)[:, None]))
        if i < len(fed.deep):
            hidden = hidden + fed.deep[i]
    return model.lm_head(language_model.norm(hidden))
