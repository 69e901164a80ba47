"""Stages that name one place for the entries of several caches: what may not act beside them."""

from __future__ import annotations

from collections.abc import Sequence

from vtprune.engine.chain_stage import ChainStage
from vtprune.methods.base import Place


def check_alike(stages: Sequence[ChainStage]) -> None:
    """Refuse methods after which heads, or layers, hold different entries where a stage needs the same ones.

    Raises:
        ValueError: There are both.
    """
    for stage in stages:
        if stage.stage.alike is None:
            continue
        needed = set(stage.layers)
        for other in stages:
            evicted = needed.intersection(other.layers if other.stage.place is Place.CACHE else ())
            if evicted:
                raise ValueError(
                    f"{stage.method} reads the same entries in several heads, but {other.method} lets each head of the "
                    f"layers {sorted(evicted)} hold other ones; use one of the two, or fasa, which reads head by head."
                )
            if stage.stage.alike != "layers":
                continue
            # What leaves at the input of its first layer is missing in all of them.
            left = needed.intersection(other.layers if other.stage.place is Place.DECODER_LAYER else ())
            left = (left - {min(needed)}) | needed.intersection(other.stage.skips)
            if left:
                raise ValueError(
                    f"{stage.method} reads the same entries in the layers from {min(needed)} on, but because of "
                    f"{other.method} these hold different ones from layer {min(left)} on; let tokens leave at layer "
                    f"{min(needed)} or before, or use tokenselect, which chooses in every layer."
                )
