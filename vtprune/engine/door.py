"""The language model's door: the last moment before its first layer, where all pictures of a call are at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtprune.engine.chain import Chain
from vtprune.engine.deepstack import DeepStackRows, spread
from vtprune.engine.events import Event
from vtprune.engine.layout import VisualLayout
from vtprune.engine.selection import Selected, Text, select
from vtprune.engine.signals import query_rows


def decide(
    chain: Chain, layout: VisualLayout, arguments: dict[str, Any], valid: Tensor | None
) -> tuple[list[Selected], list[Event]]:
    """Run the stages of the encoder's output, and put new features in the place of old ones.

    Args:
        chain: The methods.
        layout: Where the pictures stand.
        arguments: Of the language model; its features are replaced where a stage makes new ones.
        valid: Bool (rows, slots), False on padding; None without padding.

    Returns:
        What became of the pictures, empty if nothing was decided about any; and the stages that acted.
    """
    if not chain.door_stages and all(p.run.groups is None for p in layout.pictures):
        return [], []
    embeds: Tensor | None = arguments.get("inputs_embeds")
    if embeds is None:
        raise ValueError(f"{chain.label} needs the language model to be called with inputs_embeds.")
    mask: Tensor | None = arguments.get("visual_pos_masks")
    levels = [embeds.flatten(0, 1)]
    if mask is not None and any(stage.differentiable for stage in chain.door_stages):
        # New features are made on every level; a selection needs the input's only.
        levels += [spread(mask, level) for level in DeepStackRows.levels(arguments)]
    text = None
    if any("text" in stage.signals for stage in chain.door_stages):
        text = Text(embeds, *query_rows("text_queries", layout.picture, valid))
    selected, events = select(chain.door_stages, layout, levels, text)
    if chain.shares:
        selected = [dataclasses.replace(one, kept=torch.ones_like(one.kept)) for one in selected]
    if any(one.levels is not None for one in selected):
        for i, level in enumerate(levels):
            levels[i] = _with_new_features(level, i, layout, selected)
        arguments["inputs_embeds"] = levels[0].view_as(embeds)
        if mask is not None:
            arguments["deepstack_visual_embeds"] = [x[mask.flatten().to(x.device)] for x in levels[1:]]
    return selected, events


def _with_new_features(flat: Tensor, level: int, layout: VisualLayout, selected: Sequence[Selected]) -> Tensor:
    for one in selected:
        if one.levels is None:
            continue
        features = one.levels[level]
        shown, which = _shown(layout, one)
        places = layout.places_of(shown, features.shape[1]).flatten().to(flat.device)
        flat = flat.index_put((places,), features[which].flatten(0, 1))
    return flat


def owners(layout: VisualLayout, selected: Sequence[Selected]) -> Tensor:
    """(rows, slots): for every slot the one that stands for it, itself if none does."""
    rows, slots = layout.visual.shape
    owner = torch.arange(slots, device=layout.device).repeat(rows)
    for one in selected:
        if one.owner is not None:
            shown, which = _shown(layout, one)
            places = layout.places_of(shown, one.owner.shape[1])
            owner[places] = places.gather(1, one.owner[which].to(layout.device)) % slots
    return owner.view(rows, slots)


def staying(layout: VisualLayout, selected: Sequence[Selected]) -> Tensor | None:
    """Bool (rows, slots): the slots that stay, text and padding among them; None if nothing was decided."""
    return _on_slots(layout, [(one, one.kept) for one in selected])


def running(layout: VisualLayout, selected: Sequence[Selected]) -> Tensor | None:
    """Bool (rows, slots): the slots that pass by no decoder layer, text and padding among them; None if all do."""
    return _on_slots(layout, [(one, one.runs) for one in selected if one.runs is not None])


def marks(layout: VisualLayout, selected: Sequence[Selected]) -> dict[str, Tensor]:
    """By method, (rows, slots): what it marked at the encoder's output; anything on text and padding."""
    found: dict[str, Tensor] = {}
    for method in dict.fromkeys(name for one in selected for name in one.marks):
        marked = _on_slots(layout, [(one, one.marks[method]) for one in selected if method in one.marks])
        if marked is not None:
            found[method] = marked
    return found


def _on_slots(layout: VisualLayout, chosen: Sequence[tuple[Selected, Tensor]]) -> Tensor | None:
    """Masks or numbers (pictures, slots) of pictures on the slots of the batch, True or 1 elsewhere; None of none."""
    if not chosen:
        return None
    marked = torch.ones(layout.visual.size, dtype=chosen[0][1].dtype, device=layout.device)
    for one, mask in chosen:
        shown, which = _shown(layout, one)
        places = layout.places_of(shown, mask.shape[1])
        mask = mask.to(layout.device)
        if which != list(range(len(mask))):
            mask = mask[which]
        marked[places] = mask
    return marked.view(layout.visual.shape)


def _shown(layout: VisualLayout, selected: Selected) -> tuple[list[int], list[int]]:
    """Pictures of the batch that show the selected ones, and which of these each shows."""
    at = {number: i for i, number in enumerate(selected.numbers)}
    shown = [n for n, source in enumerate(layout.source) if source in at]
    return shown, [at[layout.source[n]] for n in shown]
