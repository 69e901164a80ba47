"""Which stages of a chain cannot be together, and in which order they must be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from vtprune.engine.alike import check_alike
from vtprune.engine.chain_stage import ChainStage
from vtprune.methods.base import Place

ENCODER = (Place.ENCODER_INPUT, Place.ENCODER_LAYER, Place.ENCODER_OUTPUT)


def check_together(stages: Sequence[ChainStage], names: Sequence[str]) -> None:
    """Refuse stages that cannot be in one chain.

    Args:
        stages: All of a chain, in order, each checked by itself.
        names: Of its methods.

    Raises:
        ValueError: Two of them cannot be together, or not in this order; the message says what to use instead.
    """
    _check_order(stages, names)
    _check_encoder(stages)
    _check_sharing(stages, names)
    _check_passing_by(stages)
    _check_hiding(stages)
    _check_observations(stages)
    _check_evictions(stages)
    check_alike(stages)


def _check_order(stages: Sequence[ChainStage], names: Sequence[str]) -> None:
    order = list(Place)
    # Attention and MLP of a layer do not wait for one another.
    alike = {Place.MLP: Place.ATTENTION}
    places = [order.index(alike.get(s.stage.place, s.stage.place)) for s in stages]
    if places != sorted(places):
        raise ValueError(
            f"methods must be chained in the order of their places ({', '.join(order)}), got {' + '.join(names)}."
        )


def _check_encoder(stages: Sequence[ChainStage]) -> None:
    layers = [s for s in stages if s.stage.place is Place.ENCODER_LAYER]
    ragged = [s for s in layers if s.stage.ragged]
    even = [s for s in layers if not s.stage.ragged]
    if ragged and even:
        raise ValueError(
            f"{even[0].method} needs equally many tokens of every tile, so it cannot act beside {ragged[0].method}, "
            "which keeps different numbers; use one of the two."
        )
    for earlier, later in itertools.pairwise(s for s in stages if s.stage.place in ENCODER):
        if later.stage.needs_grid or later.stage.needs_all:
            # Before the encoder only some methods can act at all.
            first = "" if earlier.stage.place is Place.ENCODER_INPUT else f"put {later.method} first, or "
            raise ValueError(
                f"{later.method} needs every token of a picture, so it cannot follow {earlier.method}; {first}use one "
                "of the two."
            )
    resizing = [s for s in stages if s.stage.place is Place.ENCODER_INPUT]
    comparing = [s for s in stages if "pixel_steps" in s.signals]
    if resizing and comparing:
        raise ValueError(
            f"{comparing[0].method} compares the pixels of neighbouring tokens, which {resizing[-1].method} replaces; "
            "use one of the two."
        )


def _check_sharing(stages: Sequence[ChainStage], names: Sequence[str]) -> None:
    sharing = [s.method for s in stages if s.stage.shares]
    if sharing and len(names) > 1:
        raise ValueError(
            f"{sharing[0]} lets merged tokens share a hidden state in all decoder layers, so that no other method can "
            f"act beside it, got {' + '.join(names)}; let merged tokens leave instead (unmerge=False), or use "
            f"{sharing[0]} alone."
        )


def _check_passing_by(stages: Sequence[ChainStage]) -> None:
    skipping = [s for s in stages if s.stage.skips]
    if len(skipping) > 1:
        raise ValueError(
            f"{skipping[0].method} and {skipping[1].method} both let tokens pass by decoder layers; use one."
        )
    for later in (s for s in stages if skipping and s.stage.place is Place.DECODER_LAYER):
        asked_of = {layer - 1 for layer in later.layers if later.captured}
        asked_of |= {layer for layer in later.layers if later.looks_ahead}
        asked_of |= {layer for x in later.stage.observations for layer in x.layers}
        late = asked_of & set(skipping[0].stage.skips)
        if late:
            raise ValueError(
                f"{later.method} asks for signals of decoder layers that tokens pass by because of "
                f"{skipping[0].method} ({sorted(late)}); let them pass by other layers."
            )


def _check_hiding(stages: Sequence[ChainStage]) -> None:
    for stage, later in itertools.pairwise(stages):
        if stage.stage.hides:
            raise ValueError(
                f"{stage.method} hides tokens that stay where they are, so that {later.method} behind it would decide "
                "on what nobody sees; let them leave instead (hide=False), or put it last."
            )


def _check_observations(stages: Sequence[ChainStage]) -> None:
    narrowing = [s for s in stages if s.stage.place is Place.MLP and "activations" not in s.signals]
    for stage in stages:
        for observation in stage.stage.observations:
            for other in narrowing if observation.module.startswith("mlp") else ():
                if narrowed := sorted(set(observation.layers).intersection(other.layers)):
                    raise ValueError(
                        f"{stage.method} looks at MLPs of decoder layers that {other.method} lets run on some tokens "
                        f"only ({narrowed}); give them different layers."
                    )


def _check_evictions(stages: Sequence[ChainStage]) -> None:
    taken: dict[int, str] = {}
    for stage in (s for s in stages if s.stage.place is Place.CACHE):
        for layer in stage.layers:
            if layer in taken:
                raise ValueError(
                    f"{taken[layer]} and {stage.method} both evict from the cache of layer {layer}; use one of the two."
                )
            taken[layer] = stage.method
