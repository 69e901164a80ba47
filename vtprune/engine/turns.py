"""Stages at the cache that act before a further turn: room for what is about to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vtprune.engine.cache import is_visual
from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.decoder import DecoderStep
from vtprune.engine.eviction import Eviction
from vtprune.integrations.base import Integration
from vtprune.methods.base import CacheEntries, Keep


@torch.no_grad()
def before_turn(integration: Integration, stages: Sequence[ChainStage], step: DecoderStep) -> None:
    """Let stages act at the door of a call of several slots, on what the cache holds until then.

    Args:
        integration: The model's family.
        stages: Those at the cache that ask for it.
        step: The call, before any of its slots is counted.
    """
    if not stages or step.original_length < 2 or not is_visual(step.cache):
        return
    eviction = Eviction(integration, step)
    for stage in stages:
        for layer in stage.layers:
            _act(eviction, stage, layer)


def _act(eviction: Eviction, stage: ChainStage, layer: int) -> None:
    step = eviction.step
    held: Any = step.cached[layer]
    if held.record is None or stage.method not in held.record.memory:
        return
    keys, record, valid = held.keys, held.record, step.rows[layer].valid
    rows, device = len(keys), keys.device
    there = keys.new_ones(rows, keys.shape[2], dtype=torch.bool) if valid is None else valid.to(device)
    candidate = record.candidate & there[:, None]
    decision = stage.decide(
        CacheEntries(
            layer=layer,
            queries=keys[:, :, :0],
            query_at=torch.zeros(rows, 0, dtype=torch.long, device=device),
            query_valid=None,
            keys=keys.detach(),
            values=held.values.detach(),
            scale=eviction.integration.decoder_scale(eviction.integration.decoder_layers[layer]),
            valid=there,
            candidate=candidate,
            picture=torch.full_like(there, -1, dtype=torch.long),
            arrived=record.arrived[:, None],
            memory=record.memory[stage.method],
            across=eviction.across_layers(stage, device),
            slot=torch.zeros(rows, 0, dtype=torch.long, device=device),
            fed=step.past,
            grows=True,
            coming=step.original_length,
        )
    )
    if decision is None:
        return
    if not isinstance(decision, Keep) or decision.keys is not None or decision.values is not None:
        raise TypeError(f"{stage.method}: before a further turn a stage must return a plain Keep, got {decision!r}.")
    keep = (decision.mask.to(device) | ~candidate) & there[:, None]
    eviction.evict(stage, layer, keep, there, step.past)
