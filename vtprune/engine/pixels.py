"""How much the pixels of neighbouring tokens differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.integrations.base import EncoderCall, Integration
from vtprune.integrations.layout import Map, PictureLayout


def pixel_steps(integration: Integration, call: EncoderCall, units: Sequence[PictureLayout]) -> list[Tensor]:
    """Per unit, `steps_on_map` of all of its maps, (slots, 2) in float32; infinite on newlines."""
    found = []
    for unit, pixels in zip(units, integration.pixels_on_slots(call), strict=True):
        steps = torch.full((unit.slots, 2), float("inf"), device=pixels.device)
        for one in unit.maps:
            slots = one.slots().to(pixels.device)
            steps[slots] = steps_on_map(one, pixels[slots])
        found.append(steps)
    return found


def steps_on_map(one: Map, pixels: Tensor) -> Tensor:
    """The RMS difference of a token and the next one to the right and below, (tokens, 2), from (tokens, values).

    Infinite at the edges of the map and of its frames.
    """
    cells = pixels.float().unflatten(0, one.grid)
    steps = cells.new_full((*one.grid, 2), float("inf"))
    steps[:, :, :-1, 0] = (cells[:, :, 1:] - cells[:, :, :-1]).square().mean(-1).sqrt()
    steps[:, :-1, :, 1] = (cells[:, 1:] - cells[:, :-1]).square().mean(-1).sqrt()
    return steps.flatten(0, 2)
