"""Golden cases of methods that cut at several decoder layers: whole prefills and what is decoded behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.golden.loop import Loop
from vtprune.methods.pyramiddrop import PyramidDrop, asking_rows
from vtprune.methods.transprune import TransPrune, score, transition

Case = dict[str, Tensor]


def prefill(
    case: Case,
    cut: Callable[[Loop, int, int], Tensor],
    begin: Callable[[Loop], None] = lambda loop: None,
    end: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Run a case: `cut` says what stays of the visual tokens at each cut; `begin` and `end` go before and behind."""
    loop = Loop(case, int(case["image_start"]), int(case["image_tokens"]))
    begin(loop)
    cuts = {layer: stage for stage, layer in enumerate(case["stage_layers"].tolist())}
    out: dict[str, Any] = {}
    for layer in range(len(loop.model.layers)):
        if layer in cuts:
            stage = cuts[layer]
            slots = loop.cut(layer, cut(loop, stage, layer))
            out |= {f"keep_index_{stage}": slots, f"position_ids_after_{stage}": loop.positions[0]}
        loop.run(layer)
    end()
    out["last_hidden"] = loop.hidden()
    if "decode_embeds" in case:
        out["decode_hidden"] = loop.decode(case["decode_embeds"], case["inputs_embeds"].shape[0])
        out["cache_len_per_layer_after_decode"] = loop.lengths()
    return out


def pyramiddrop(case: Case) -> dict[str, Any]:
    layers, kept = case["stage_layers"].tolist(), case["stage_keep"].tolist()
    method = PyramidDrop(layers=layers, shares=kept)
    labels, memory, out = case.get("labels"), {}, {}

    def cut(loop: Loop, stage: int, layer: int) -> Tensor:
        nonlocal labels
        last = torch.tensor([loop.x.shape[1] - 1])
        scores = loop.attention(layer, last if labels is None else asking_rows(labels[None])[0].nonzero()[:, 0])
        mask = method.decide(loop.tokens(layer, scores, memory), {n: i for i, n in enumerate(layers)}).mask[0]
        out[f"score_{stage}"] = scores[0]
        if labels is not None:
            end = loop.first + loop.visual
            labels = torch.cat((labels[: loop.first], labels[loop.first : end][mask], labels[end:]))
            out["labels_after"] = labels
        return mask

    return prefill(case, cut) | out


def transprune(case: Case) -> dict[str, Any]:
    layers, kept = case["stage_layers"].tolist(), case["stage_keep"].tolist()
    watched = [count - 1 for count in case["accumulate_layers"].tolist()]
    method, memory, out = TransPrune(layers=layers, shares=kept), {}, {}
    noted: dict[int, Tensor] = {}  # by layer, (slots,)

    def watch(loop: Loop) -> None:
        def note(layer: int) -> Callable[..., None]:
            def hook(part: Any, args: Any, kwargs: Any, output: Any) -> None:
                given = args[0] if args else kwargs["hidden_states"]
                values = transition(given, output[0] if isinstance(output, tuple) else output)[0]
                noted[layer] = values + noted[layer] if layer in noted else values

            return hook

        for layer in watched:
            module = loop.model.layers[layer]
            for part in (module.self_attn, module.mlp):
                handles.append(part.register_forward_hook(note(layer), with_kwargs=True))

    def cut(loop: Loop, stage: int, layer: int) -> Tensor:
        visual = slice(loop.first, loop.first + loop.visual)
        attention = loop.attention(layer, torch.arange(visual.stop, loop.x.shape[1]))
        out[f"ttv_{stage}"] = torch.stack(list(noted.values())) if noted else torch.zeros(0, loop.x.shape[1])
        observed = {("layer", i): x[None, visual] for i, x in noted.items()}
        tokens = loop.tokens(layer, attention, memory, observed=observed)
        mask = method.decide(tokens, {n: i for i, n in enumerate(layers)}).mask[0]
        transitions = sum(observed.values(), torch.zeros_like(attention))
        out[f"score_{stage}"] = score(transitions, attention, tokens.valid)[0]
        stays = torch.ones(loop.x.shape[1], dtype=torch.bool)
        stays[visual] = mask
        for i, x in noted.items():
            noted[i] = x[stays]
        return mask

    handles: list[Any] = []
    return prefill(case, cut, watch, lambda: [handle.remove() for handle in handles]) | out


ADAPTERS = {"pyramiddrop": pyramiddrop, "transprune": transprune}
STAGES = {"inputs_embeds", "stage_layers", "stage_ratios", "stage_in", "stage_keep", "decode_embeds", "labels"}
INPUTS = {"pyramiddrop": STAGES, "transprune": STAGES | {"accumulate_layers"}}
