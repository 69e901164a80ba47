"""Pictures that are made smaller before they are encoded, in models whose encoder takes any size.

The encoder runs on the smaller pictures. Behind it the features of their tokens are copied to the slots that they cover
in the picture that was given, as merged ones are, so that placeholders and positions match; at the language model's
door one slot stays for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.events import Resized
from vtprune.integrations.base import EncoderCall, Grid, Integration, PictureLayout
from vtprune.methods._grids import cell_owner
from vtprune.methods.base import Pixels, Resize


class Shrunk(NamedTuple):
    """What became of a call that encodes pictures.

    Attributes:
        call: The call that encodes the smaller ones.
        covers: Per unit, the token of the smaller picture that covers each slot, (slots,); None if all kept their size.
        acted: The stages.
    """

    call: EncoderCall
    covers: list[Tensor] | None
    acted: list[Resized]


def shrink(integration: Integration, stages: Sequence[ChainStage], call: EncoderCall) -> Shrunk:
    """Let the stages at the encoder's input make the pictures of a call smaller.

    Raises:
        ValueError: A picture would become larger, lose frames, or have sides that are no whole number of tokens.
    """
    given = grids = _grids(integration.layouts(call))
    small, pixels = call, integration.pixels(call)
    acted: list[Resized] = []
    for stage in stages:
        decisions = [stage.decide(Pixels(grid, x)) for grid, x in zip(grids, pixels, strict=True)]
        if not all(x is None or isinstance(x, Resize) for x in decisions):
            raise TypeError(f"{stage.method}: a stage at the encoder's input must return Resize, got {decisions!r}.")
        pixels = [y.pixels if isinstance(y, Resize) else x for x, y in zip(pixels, decisions, strict=True)]
        small = integration.with_pixels(call, pixels)
        before, grids = grids, _grids(integration.layouts(small))
        if any(a[0] != b[0] or a[1] > b[1] or a[2] > b[2] for a, b in zip(grids, before, strict=True)):
            raise ValueError(f"{stage.method}: pictures may only become smaller, from {before} to {grids} tokens.")
        acted.append(Resized(stage, None, _tokens(before), _tokens(grids), grids))
    if grids == given:
        return Shrunk(call, None, acted)
    device = pixels[0].device
    covers = [cell_owner(a[0], a[1:], b[1:])[0].to(device) for a, b in zip(given, grids, strict=True)]
    return Shrunk(small, covers, acted)


def _grids(units: Sequence[PictureLayout]) -> list[Grid]:
    grids = [unit.grid for unit in units if unit.grid is not None]
    if len(grids) != len(units):
        raise TypeError("pictures of any size must be one grid of tokens each.")
    return grids


def _tokens(grids: Sequence[Grid]) -> int:
    return sum(math.prod(grid) for grid in grids)
