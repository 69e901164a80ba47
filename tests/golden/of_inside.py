"""Golden cases of methods that compute less inside decoder layers: a prefill and a token, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.golden import adapters
from vtprune.engine.feeding import narrow
from vtprune.engine.parts import attend
from vtprune.methods import Cells, LayerSlots, ModelInfo, Part, Place, Where
from vtprune.methods._heads import chosen, votes
from vtprune.methods._windows import window_blocks
from vtprune.methods.yopo import YOPO

Case = dict[str, Tensor]


class Inside:
    """The decoder of a case: one row with one picture of `rows` x `columns` tokens behind `first` slots of text."""

    def __init__(self, case: Case, stages: Any, first: int, rows: int, columns: int) -> None:
        self.model = adapters.llama(case)
        self.heads = int(case["num_heads"])
        self.stages = {(stage.place, layer): stage for stage in stages for layer in stage.layers}
        self.first, self.columns, self.visual = first, columns, rows * columns
        self.cache = DynamicCache()
        self.memory: dict[str, Any] = {}

    def slots(self, layer: int, length: int) -> LayerSlots:
        """What a stage sees of a prefill, or of a token behind it."""
        past, first = self.cache.get_seq_length(layer), self.first
        slot, end = torch.arange(length)[None], first + self.visual
        visual = slot[:, first:end] if past == 0 else slot[:, :0]
        text = torch.cat((slot[:, :first], slot[:, end:]), 1) if past == 0 else slot
        raster, entry = visual - first, torch.arange(past + length)
        same = torch.zeros_like(raster)
        cells = Cells(same, same, same, raster // self.columns, raster % self.columns)
        return LayerSlots(
            layer=layer,
            past=past,
            heads=self.heads,
            kv_heads=self.heads,
            text=text,
            visual=visual,
            visual_entries=((entry >= first) & (entry < end))[None, None],
            valid=None,
            memory=self.memory,
            held={},
            where=Where(cells, self.columns, slot[:, :first]),
        )

    def run(self, layer: int, x: Tensor) -> Tensor:
        """One layer on x (1, slots, width), as its stages have it."""
        module, length = self.model.layers[layer], x.shape[1]
        shown, attention = self.slots(layer, length), module.self_attn
        normed = module.input_layernorm(x)
        q, k, v = (
            projection(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        rotary = self.model.rotary_emb(x, shown.past + torch.arange(length)[None])
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        stage = self.stages.get((Place.ATTENTION, layer))
        decision = None if stage is None else stage.decide(shown)
        k, v = self.cache.update(k, v, layer)
        parts = (Part(),) if decision is None else decision.parts
        x = x + attention.o_proj(attend(q, k, v, parts).flatten(2))
        normed, mlp = module.post_attention_layernorm(x), module.mlp
        stage = self.stages.get((Place.MLP, layer))
        if stage is None or not shown.visual.shape[1]:
            return x + mlp(normed)
        added = torch.zeros_like(x)
        for part in stage.decide(shown).parts:
            hidden, at = normed[:, part.slots[0]], part.slots[0]
            whole = mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn
            added[:, at] = mlp(hidden) if part.channels is None else narrow(whole, hidden, part.channels)
        return x + added


def yopo(case: Case) -> dict[str, Any]:
    return _heads(case) if "visual_mass" in case else _prefill(case)


def _heads(case: Case) -> dict[str, Any]:
    first, threshold = int(case["first_pruned_layer"]), float(case["threshold"])
    count = votes(case["visual_mass"], case["text_mass"] + case["system_mass"], threshold, first)
    return {"vote_count": count, "head_mask": (count > int(case["votes_needed_strictly_more_than"])).long()}


def _prefill(case: Case) -> dict[str, Any]:
    first, rows, columns = (int(case[name]) for name in ("sys_length", "grid_h", "grid_w"))
    layers, heads, side = int(case["num_layers"]), int(case["num_heads"]), int(case["window"])
    method = YOPO(
        window=side,
        heads=chosen(case["head_mask"].bool()),
        silent=True,
        layer=int(case["layer_cut"]),
        mlp=int(case["mlp_ratio"]),
        layer_softmax="zero",
    )
    channels = case["w.layers.0.mlp.gate_proj.weight"].shape[0]
    info = ModelInfo("llama", 1, layers, True, decoder_heads=heads, decoder_kv_heads=heads, decoder_channels=channels)
    inside = Inside(case, method.stages(info), first, rows, columns)
    x, token, hidden = case["inputs_embeds"][None], case["decode_embed"][None, None], []
    window = _allowed(window_blocks(inside.slots(0, x.shape[1]), side), first, rows * columns)
    for layer in range(layers):
        x = inside.run(layer, x)
        hidden.append(x[0])
    for layer in range(layers):
        token = inside.run(layer, token)
    return {
        "head_mask": torch.tensor([[int(head in layer) for head in range(heads)] for layer in method.heads]),
        "neighbor_allowed": window,
        "hidden_after_layer0": hidden[0],
        "last_hidden": inside.model.norm(hidden[-1]),
        "decode_hidden": inside.model.norm(token)[0, 0],
    }


def _allowed(part: Part, first: int, visual: int) -> Tensor:
    """(visual, visual), which visual tokens each attends to."""
    allowed = torch.zeros(first + visual + 1, first + visual + 1, dtype=torch.long)  # the last for padding
    for asking, offered, sees in zip(part.slots[0, 0], part.entries[0, 0], part.sees[0, 0], strict=True):
        allowed[asking[:, None], offered] |= sees.long()
    return allowed[first:-1, first:-1]


ADAPTERS = {"yopo": yopo}
INPUTS = {"yopo": {"inputs_embeds", "decode_embed", "visual_mass", "text_mass", "system_mass"}}
