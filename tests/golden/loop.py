"""A decoder of a golden case, layer by layer: slots leave by hand, and every layer keeps a cache of its own length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.golden import adapters
from vtprune.kernels import attention_scores
from vtprune.methods import TextRows, VisualTokens


class Loop:
    """One row of slots that shrinks, with dense positions.

    Args:
        case: Weights and `inputs_embeds` (slots, width).
        first: The first visual slot.
        visual: How many there are.
    """

    def __init__(self, case: adapters.Case, first: int, visual: int) -> None:
        self.model = adapters.llama(case)
        self.heads = int(case["num_heads"])
        self.x = case["inputs_embeds"][None]
        self.first, self.visual = first, visual
        self.positions = torch.arange(self.x.shape[1])[None]
        self.cache = DynamicCache()
        self.shifts = [0] * len(self.model.layers)  # how much smaller positions are, layer by layer

    def run(self, layer: int) -> None:
        """Run one layer on all slots."""
        slots = self.x.shape[1]
        mask = torch.ones(1, 1, slots, slots, dtype=torch.bool).tril()
        rotary = self.model.rotary_emb(self.x, self.positions)
        module = self.model.layers[layer]
        self.x = module(self.x, attention_mask=mask, position_embeddings=rotary, past_key_values=self.cache)

    def queries_keys(self, layer: int) -> tuple[Tensor, Tensor]:
        """Rotated queries and keys (1, heads, slots, head_dim) of a layer that is about to run."""
        module = self.model.layers[layer]
        normed = module.input_layernorm(self.x)
        q, k = (
            projection(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (module.self_attn.q_proj, module.self_attn.k_proj)
        )
        return apply_rotary_pos_emb(q, k, *self.model.rotary_emb(self.x, self.positions))

    def attention(self, layer: int, rows: Tensor) -> Tensor:
        """Mean attention (1, visual tokens) of some slots (n,) in a layer that is about to run."""
        q, k = self.queries_keys(layer)
        scores = attention_scores(q[:, :, rows], k, row_positions=rows[None])
        return scores[:, self.first : self.first + self.visual]

    def text_rows(self, layer: int) -> TextRows:
        """What the text behind the picture asks in a layer that is about to run."""
        q, k = self.queries_keys(layer)
        cos, sin = self.model.rotary_emb(self.x, self.positions)
        visual, text = slice(self.first, self.first + self.visual), slice(self.first + self.visual, None)
        slots = torch.arange(self.x.shape[1])[None]
        turned = ((cos[:, part], sin[:, part]) for part in (text, visual))
        return TextRows(q[:, :, text], k, q.shape[-1] ** -0.5, slots[:, text], None, slots[:, visual], *turned)

    def replace(self, visual: Tensor, positions: Tensor) -> None:
        """Put other visual tokens (n, width) in the place of those that are there, at positions (slots,) of all."""
        before, behind = self.x[:, : self.first], self.x[:, self.first + self.visual :]
        self.x = torch.cat((before, visual[None], behind), 1)
        self.visual, self.positions = len(visual), positions[None]

    def tokens(self, layer: int, attention: Tensor | None, memory: dict, **more: object) -> VisualTokens:
        """What a stage sees."""
        there = torch.ones(1, self.visual, dtype=torch.bool)
        arrived = torch.tensor([[self.visual]])
        return VisualTokens(layer, there, torch.zeros_like(there, dtype=torch.long), arrived, attention, memory, **more)

    def cut(self, layer: int, kept: Tensor) -> Tensor:
        """Let visual tokens leave, for the layers from `layer` on; returns the slots (n,) that stay."""
        stays = torch.ones(self.x.shape[1], dtype=torch.bool)
        stays[self.first : self.first + self.visual] = kept
        slots = stays.nonzero()[:, 0]
        self.shifts = [n + (i >= layer) * int((~stays).sum()) for i, n in enumerate(self.shifts)]
        self.x = self.x[:, slots]
        self.visual = int(kept.sum())
        self.positions = torch.arange(len(slots))[None]
        return slots

    def hidden(self) -> Tensor:
        """(slots, width) behind the last norm."""
        return self.model.norm(self.x)[0]

    def decode(self, embeds: Tensor, start: int) -> Tensor:
        """Feed tokens (n, width) one by one, the first at position `start` of the full prompt: (n, width)."""
        out = []
        for i, x in enumerate(embeds):
            hidden = x[None, None]
            for layer, shift in zip(self.model.layers, self.shifts, strict=True):
                rotary = self.model.rotary_emb(hidden, torch.tensor([[start + i - shift]]))
                hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, past_key_values=self.cache)
            out.append(self.model.norm(hidden)[0, 0])
        return torch.stack(out)

    def lengths(self) -> Sequence[int]:
        """Slots in the cache of every layer."""
        return [layer.keys.shape[2] for layer in self.cache.layers]
