"""What a stage of a chain must be by itself, and on a model."""

from __future__ import annotations

from vtprune.engine.chain_stage import SIGNALS, ChainStage
from vtprune.integrations.base import Integration
from vtprune.methods.base import EncoderSignal, Observation, Place, check_layer


def check_stage(stage: ChainStage, integration: Integration) -> None:
    """Refuse what a stage asks for where it acts, or what a family has not.

    Raises:
        TypeError: The stage cannot be as it is on any model; its author has to change it.
        ValueError: It cannot act on this one.
    """
    of_blocks = [x for x in stage.signals if isinstance(x, EncoderSignal)]
    if stage.stage.place is not Place.ENCODER_OUTPUT and of_blocks:
        raise ValueError(f"{stage.method} asks for {of_blocks[0]}; stages at the encoder's output may, no others.")
    for signal in of_blocks:
        if signal.block not in integration.attention_blocks:
            raise ValueError(
                f"{stage.method} asks for the attention of vision block {signal.block}, but of "
                f"{integration.family_name} it is known for the blocks {list(integration.attention_blocks)}."
            )
    unknown = {x for x in stage.signals if isinstance(x, str)} - SIGNALS[stage.stage.place]
    if unknown:
        raise ValueError(
            f"{stage.method} asks for {', '.join(sorted(unknown))} at the place {stage.stage.place.value!r}; "
            f"available there: {', '.join(sorted(SIGNALS[stage.stage.place])) or 'no signals'}."
        )
    if stage.stage.place is Place.DECODER_LAYER and stage.captured and 0 in stage.layers:
        raise ValueError(f"{stage.method} needs attention from the layer before, so it cannot act at layer 0.")
    in_place = stage.stage.place is Place.DECODER_LAYER and len(stage.layers) == 1 and stage.positions == "original"
    if stage.stage.hides and not in_place:
        raise TypeError(f"{stage.method}: tokens can be hidden at one decoder layer, and keep their positions.")
    for observation in stage.stage.observations:
        _check_observation(stage, observation, integration)
    if stage.stage.trial is not None:
        _check_trial(stage, stage.stage.trial, integration)
    if stage.stage.text and stage.stage.place is not Place.CACHE:
        raise TypeError(f"{stage.method}: only a stage at the cache can evict text.")
    if stage.stage.decodes and stage.stage.place not in (Place.CACHE, Place.ATTENTION):
        raise TypeError(f"{stage.method}: only stages at the cache and at the attention can act while decoding.")
    if stage.stage.alike is not None and stage.stage.place is not Place.ATTENTION:
        raise TypeError(f"{stage.method}: only a stage at the attention can need the same entries elsewhere.")
    if stage.stage.late and (stage.stage.place is not Place.CACHE or stage.signals or stage.stage.decodes):
        raise TypeError(f"{stage.method}: a late stage acts at the cache, once, and gets no signals.")
    if stage.stage.turns and not (stage.stage.place is Place.CACHE and stage.stage.decodes):
        raise TypeError(f"{stage.method}: a stage that acts before further turns acts at the cache, at later calls.")
    late = stage.stage.place in (Place.DECODER_LAYER, Place.ATTENTION, Place.MLP, Place.CACHE)
    if stage.stage.shares and (late or stage.stage.prunes):
        raise ValueError(f"{stage.method}: only tokens that merge before the language model can share a state.")
    if stage.stage.place is Place.ENCODER_INPUT and not integration.any_size:
        raise ValueError(
            f"{stage.method} cannot work on {integration.family_name}: its encoder takes pictures of one size "
            "only; use a method at the encoder's output."
        )
    if stage.stage.skips and (stage.stage.place is not Place.ENCODER_OUTPUT or stage.stage.scope != "picture"):
        raise TypeError(f"{stage.method}: a stage that lets tokens pass by layers decides on whole pictures.")
    if stage.stage.prunes and integration.joins_patches:
        raise ValueError(
            f"{stage.method} cannot work on {integration.family_name}: it drops single patches in the encoder, of "
            "which several make a token; use tome, which merges, or divprune, which acts at the encoder's output."
        )
    if stage.stage.over_time and not (integration.takes_videos and integration.grid_stages == "language model"):
        raise ValueError(
            f"{stage.method} cannot work on {integration.family_name} over the frames of a video: it needs a video "
            "in one piece, but this family encodes pictures or single frames; leave the frames as they are."
        )
    needs_grid = stage.stage.needs_grid or "pixel_steps" in stage.signals
    reason = integration.refusal(stage.method, stage.stage.place.value, needs_grid)
    if reason is not None:
        raise ValueError(f"{stage.method} cannot work on {integration.family_name}: {reason}.")


def _check_trial(stage: ChainStage, trial: int, integration: Integration) -> None:
    if stage.stage.place is not Place.DECODER_LAYER or stage.layers != (0,):
        raise TypeError(f"{stage.method}: only a stage at decoder layer 0 can ask for a trial run.")
    if stage.stage.mixes or stage.stage.observations:
        raise TypeError(f"{stage.method}: after a trial run tokens can only leave; nothing is noted of layers.")
    check_layer("trial", trial, 1, len(integration.decoder_layers) - 1)


def _check_observation(stage: ChainStage, observation: Observation, integration: Integration) -> None:
    if stage.stage.place is not Place.DECODER_LAYER:
        raise ValueError(f"{stage.method}: only stages at decoder layers may ask what was noted of others.")
    for layer in observation.layers:
        check_layer("an observed layer", layer, 0, len(integration.decoder_layers) - 1)
        try:
            integration.decoder_layers[layer].get_submodule(observation.module)
        except AttributeError:
            raise ValueError(
                f"{stage.method} cannot work on {integration.family_name}: decoder layer {layer} has no part "
                f"{observation.module!r}; use a method that looks at attention (fastv)."
            ) from None
