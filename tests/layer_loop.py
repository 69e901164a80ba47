"""A plain loop over decoder layers that computes less inside them: heads one by one, softmax and mask in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import vtprune
from tests.asking import answer
from tests.families import IMAGE, VIDEO, Family, Row
from tests.reference import Fed, feeding, positions_of, whole
from vtprune.compat import rotate

CLOSE = dict(atol=1e-4, rtol=1e-4)


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


def prompts(family: Family) -> list[Row]:
    """With a picture, with two, with a picture and a video if the family takes such."""
    rows = [family.row(5, IMAGE, 7), family.row(3, IMAGE, 2, IMAGE, 6, seed=1)]
    return rows + ([family.row(2, IMAGE, 3, VIDEO, 4, seed=2)] if VIDEO in family.kinds else [])


def check_answer(
    model: Any, family: Family, row: Row, method: Any, rule: Callable[[Tensor, Any], Rule], new: int = 4
) -> tuple[Any, tuple[Tensor, Tensor, Any]]:
    """Prompt and answer under a method have the logits of `layer_loop`; returns the report, and what `answer` does.

    Args:
        model: Without methods.
        family: Its family.
        row: The prompt.
        method: One method or a chain, as `vtprune.apply` takes it.
        rule: What is computed: from what is visual of prompt and answer (slots,), and the report.
        new: Tokens of the answer.
    """
    with vtprune.applied(model, method), feeding(model) as seen:
        tokens, logits, _ = answered = answer(model, family.inputs(row), new)
        report = vtprune.report(model)
    conversation = row.then(tokens[0])
    fed = whole(model, conversation, [(torch.arange(len(row.ids)), seen[0])])
    found = rule(conversation.visual, report)
    expected = layer_loop(model, fed, positions_of(model, family, conversation), found)
    torch.testing.assert_close(logits, expected[:, -new - 1 : -1], **CLOSE)
    return report, answered
