"""What an engine must reproduce: a plain loop over decoder layers that drops slots by hand, one row, no cache."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

import vtprune


@dataclasses.dataclass
class Decisions:
    """What a method decided for one row: slots that enter, slots left behind each cut, and position rules."""

    entered: Tensor  # bool (slots,)
    cuts: dict[int, Tensor]  # layer -> bool (slots,)
    compact_door: bool
    compact_cuts: bool = False


def decisions(model, ids: Tensor, row: int = 0) -> Decisions:
    """Read the decisions for one row of the last prefill from the report, and the position rules from the methods."""
    report = vtprune.report(model)
    engine = vtprune.api._engines[model]
    visual = (ids == model.config.image_token_id).nonzero().squeeze(1)
    entered, kept = torch.ones_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool)
    offset = 0
    for picture in report.pictures:
        if picture.row != row:
            continue
        tokens = picture.grid[1] * picture.grid[2]
        slots = visual[offset : offset + tokens]
        entered[slots] = False
        kept[slots] = False
        entered[slots[list(picture.entered)]] = True
        kept[slots[list(picture.kept)]] = True
        offset += tokens
    cuts = {
        p.layer: kept for p in report.places if p.place == "decoder layer" and p.tokens_after < p.tokens_before
    }
    if len(cuts) > 1:  # an exit in two steps: only the last one is the final set
        raise AssertionError(f"the reference reads one cut per row, got {sorted(cuts)}")
    return Decisions(
        entered,
        cuts,
        engine.chain.door_positions == "compact",
        any(s.positions == "compact" for s in engine.chain.decoder_stages),
    )


def embed(model, ids: Tensor, features: Tensor | None) -> Tensor:
    """(1, slots, width): text embeddings with features (visual tokens, width) on the placeholders."""
    embeds = model.get_input_embeddings()(ids[None])
    if features is None:
        return embeds
    mask = (ids[None] == model.config.image_token_id)[..., None].expand_as(embeds)
    return embeds.masked_scatter(mask, features.to(embeds.dtype))


def bare_run(model, embeds: Tensor, decisions: Decisions | None = None, masked: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (1, left, vocabulary) and the slots that are left, of the language model without any hook.

    With `masked`, cuts hide slots from all later queries instead of removing them.
    """
    language_model = model.model.language_model
    slots = torch.arange(embeds.shape[1])
    positions = slots.clone()
    if decisions is not None:
        slots = decisions.entered.nonzero().squeeze(1)
        positions = torch.arange(len(slots)) if decisions.compact_door else slots.clone()
    hidden = embeds[:, slots]
    hidden_from = torch.zeros(len(slots), dtype=torch.bool)
    for i, layer in enumerate(language_model.layers):
        if decisions is not None and i in decisions.cuts:
            stays = decisions.cuts[i][slots]
            if masked:
                hidden_from = ~stays
            else:
                hidden, slots, positions = hidden[:, stays], slots[stays], positions[stays]
                hidden_from = hidden_from[stays]
                if decisions.compact_cuts:
                    positions = torch.arange(len(slots))
        length = len(slots)
        mask = torch.ones(length, length, dtype=torch.bool).tril() & ~hidden_from[None, :]
        mask = mask | torch.eye(length, dtype=torch.bool)  # hidden slots still see themselves, nobody looks at them
        mask = mask[None, None]
        if language_model.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        rotary = language_model.rotary_emb(hidden, position_ids=positions[None])
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        if isinstance(hidden, tuple):
            hidden = hidden[0]
    logits = model.lm_head(language_model.norm(hidden))
    return logits[:, ~hidden_from], slots[~hidden_from]


def all_features(model, pixel_values: Tensor) -> Tensor:
    """(visual tokens, width) of all pictures, as the model (with or without methods) makes them."""
    features = model.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output
    return torch.cat(list(features))
