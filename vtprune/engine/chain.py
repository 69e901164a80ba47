"""A chain of methods, checked against a model: the stages that the engine runs, in order."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from vtprune.engine.alike import check_alike
from vtprune.integrations.base import Integration
from vtprune.methods.base import (
    Decide,
    EncoderSignal,
    Method,
    ModelInfo,
    Observation,
    Place,
    Positions,
    Stage,
    check_layer,
)

BEHIND = ("last_query", "text_queries")
"""Query rows whose attention in the decoder layer before can be asked for."""
AHEAD = ("last_query_ahead", "text_queries_ahead")
"""The same in the layer that is about to run."""

STATES = ("hidden", "text", "closing_text", "prediction")
"""What can be asked of the hidden states at the layer's input."""


@dataclasses.dataclass(frozen=True)
class ChainStage:
    """A stage together with the name of the method that it belongs to, and the position rule on this model."""

    method: str
    stage: Stage
    rule: Positions

    @property
    def decide(self) -> Decide:
        return self.stage.decide

    @property
    def layers(self) -> tuple[int, ...]:
        return self.stage.layers

    @property
    def signals(self) -> frozenset[str | EncoderSignal]:
        return self.stage.signals

    @property
    def queries(self) -> str | None:
        """Whose attention a stage at a decoder layer asks for, one of `BEHIND` or `AHEAD`; None for nobody's."""
        return next((x for x in (*BEHIND, *AHEAD) if x in self.signals), None)

    @property
    def looks_ahead(self) -> bool:
        """Whether it asks for attention in the layer that is about to run."""
        return self.queries in AHEAD or self.sees_last_row

    @property
    def sees_hidden(self) -> bool:
        """Whether a stage at a decoder layer asks for hidden states."""
        return "hidden" in self.signals

    @property
    def sees_queries_keys(self) -> bool:
        """Whether it asks for all that the attention of the layer before worked on."""
        return "queries_keys" in self.signals

    @property
    def sees_text_rows(self) -> bool:
        """Whether it asks for the queries of text in the layer before, and its keys."""
        return "text_rows" in self.signals

    @property
    def sees_last_row(self) -> bool:
        """Whether it asks for the last prompt token's query in the layer that is about to run, and its keys."""
        return "last_row_ahead" in self.signals

    @property
    def sees_queries_keys_values(self) -> bool:
        """Whether a stage at the attention decides once its queries, keys and values are there."""
        return "queries_keys_values" in self.signals

    @property
    def sees_cells(self) -> bool:
        """Whether it asks where visual slots lie."""
        return "cells" in self.signals

    @property
    def sees_text(self) -> bool:
        """Whether a stage asks for what the text is at its place."""
        return "text" in self.signals

    @property
    def captured(self) -> frozenset[str]:
        """What a stage at a decoder layer asks of the layer before."""
        return frozenset(x for x in (*BEHIND, "queries_keys", "text_rows") if x in self.signals)

    @property
    def positions(self) -> Positions:
        """Either "original" or "compact"."""
        return self.rule

    @property
    def differentiable(self) -> bool:
        """Whether its decision carries features, through which gradients must flow."""
        return self.stage.needs_grid or self.stage.mixes


SIGNALS = {
    Place.ENCODER_INPUT: frozenset(),
    Place.ENCODER_LAYER: frozenset({"values"}),
    Place.ENCODER_OUTPUT: frozenset({"encoder_attention", "pixel_steps", "projected", "text"}),
    Place.DECODER_LAYER: frozenset({*BEHIND, *AHEAD, "last_row_ahead", "queries_keys", "text_rows", *STATES}),
    Place.ATTENTION: frozenset({"queries_keys_values", "cells"}),
    Place.MLP: frozenset({"activations"}),
    Place.CACHE: frozenset({"closing_queries", "all_queries"}),
}


class Chain:
    """The stages of one or more methods on one model.

    Raises:
        ValueError: A parameter does not fit the model, or methods cannot follow one another.
    """

    def __init__(self, methods: Sequence[Method], integration: Integration) -> None:
        self.methods = tuple(methods)
        self.names = tuple(method.name for method in methods)
        info = ModelInfo(
            family=integration.family,
            encoder_layers=len(integration.encoder_blocks),
            decoder_layers=len(integration.decoder_layers),
            has_cls=integration.has_cls,
            patches=integration.patches_per_picture,
            position_axes=integration.position_axes,
            attention_blocks=integration.attention_blocks,
            scored_block=integration.scored_block,
            encoder_heads=integration.encoder_heads,
            takes_videos=integration.takes_videos,
            encoder_stages=integration.refusal("a method", Place.ENCODER_LAYER.value, False) is None,
            any_size=integration.any_size,
            decoder_heads=integration.decoder_heads,
            decoder_kv_heads=integration.decoder_kv_heads,
            decoder_channels=integration.decoder_channels,
        )
        for method in methods:
            if method.needs_video and not integration.takes_videos:
                raise ValueError(
                    f"{method.name} cannot work on {integration.family_name}: it acts on videos, of which this family "
                    "takes none; use a method for pictures (divprune)."
                )
        auto = integration.auto_positions
        self.stages = [
            ChainStage(method.name, stage, auto if stage.positions == "auto" else stage.positions)
            for method in methods
            for stage in method.stages(info)
        ]
        for stage in self.stages:
            self._check(stage, integration)
        check_alike(self.stages)
        order = list(Place)
        # Attention and MLP of a layer do not wait for one another.
        alike = {Place.MLP: Place.ATTENTION}
        places = [order.index(alike.get(s.stage.place, s.stage.place)) for s in self.stages]
        if places != sorted(places):
            raise ValueError(
                f"methods must be chained in the order of their places ({', '.join(order)}), got {self.label}."
            )
        self.encoder_input_stages = [s for s in self.stages if s.stage.place is Place.ENCODER_INPUT]
        self.encoder_layer_stages = [s for s in self.stages if s.stage.place is Place.ENCODER_LAYER]
        self.encoder_output_stages = [s for s in self.stages if s.stage.place is Place.ENCODER_OUTPUT]
        self.decoder_stages = [s for s in self.stages if s.stage.place is Place.DECODER_LAYER]
        self.attention_stages = self._by_layer(Place.ATTENTION)
        """By layer, the stage that decides about its attention."""
        self.mlp_stages = self._by_layer(Place.MLP)
        self.neuron_stages = self._by_layer(Place.MLP, neurons=True)
        """By layer, the stage that decides about its MLP; the one that chooses what of it decoded tokens use."""
        self.acts_inside = bool(self.attention_stages or self.mlp_stages)
        """Whether decoder layers compute less on the same tokens."""
        self.cache_stages = [s for s in self.stages if s.stage.place is Place.CACHE]
        self.turn_stages = [s for s in self.cache_stages if s.stage.turns]
        """Those that also act before further turns."""
        before = [
            s for s in self.encoder_output_stages if s.stage.needs_grid and integration.grid_stages == "projector"
        ]
        self.projector_stages = before
        """Those that act before the projector."""
        self.door_stages = [s for s in self.encoder_output_stages if s not in before]
        """Those that act where features enter the language model."""
        scored = EncoderSignal("attention", integration.scored_block)
        self.observations = dict.fromkeys((s.method, x) for s in self.decoder_stages for x in s.stage.observations)
        """What methods want to be noted of decoder layers."""
        asked = [x for s in self.encoder_output_stages for x in s.signals]
        of_blocks = [scored if x == "encoder_attention" else x for x in asked]
        self.encoder_signals = frozenset(x for x in of_blocks if isinstance(x, EncoderSignal))
        """What is asked of vision blocks."""
        self.compares_pixels = "pixel_steps" in asked
        self.weighs_keys = any(s.stage.proportional for s in self.encoder_layer_stages)
        self.biases_keys = self.weighs_keys or any(s.stage.ragged for s in self.encoder_layer_stages)
        for name, observation in self.observations:
            narrowed = sorted(set(observation.layers) & set(self.mlp_stages))
            if observation.module.startswith("mlp") and narrowed:
                raise ValueError(
                    f"{name} looks at MLPs of decoder layers that {self.mlp_stages[narrowed[0]].method} lets run on "
                    f"some tokens only ({narrowed}); give them different layers."
                )
        for layer in range(len(integration.decoder_layers)):
            evicting = [s.method for s in self.cache_stages if layer in s.layers]
            if len(evicting) > 1:
                raise ValueError(
                    f"{evicting[0]} and {evicting[1]} both evict from the cache of layer {layer}; use one of the two."
                )
        ragged = [s for s in self.encoder_layer_stages if s.stage.ragged]
        even = [s for s in self.encoder_layer_stages if not s.stage.ragged]
        if ragged and even:
            raise ValueError(
                f"{even[0].method} needs equally many tokens of every tile, so it cannot act beside "
                f"{ragged[0].method}, which keeps different numbers; use one of the two."
            )
        skipping = [s for s in self.stages if s.stage.skips]
        if len(skipping) > 1:
            raise ValueError(
                f"{skipping[0].method} and {skipping[1].method} both let tokens pass by decoder layers; use one."
            )
        self.skipping = skipping[0] if skipping else None
        """The stage that lets tokens pass by decoder layers."""
        for later in self.decoder_stages if self.skipping else ():
            asked_of = {layer - 1 for layer in later.layers if later.captured}
            asked_of |= {layer for layer in later.layers if later.looks_ahead}
            asked_of |= {layer for x in later.stage.observations for layer in x.layers}
            late = asked_of & set(skipping[0].stage.skips)
            if late:
                raise ValueError(
                    f"{later.method} asks for signals of decoder layers that tokens pass by because of "
                    f"{skipping[0].method} ({sorted(late)}); let them pass by other layers."
                )
        sharing = [s for s in self.stages if s.stage.shares]
        self.shares = bool(sharing)
        """Whether merged tokens stay on their slots and share a hidden state."""
        if sharing and len(methods) > 1:
            raise ValueError(
                f"{sharing[0].method} lets merged tokens share a hidden state in all decoder layers, so that no other "
                f"method can act beside it, got {self.label}; let merged tokens leave instead (unmerge=False), or use "
                f"{sharing[0].method} alone."
            )
        encoder_stages = self.encoder_input_stages + self.encoder_layer_stages + self.encoder_output_stages
        for earlier, later in itertools.pairwise(encoder_stages):
            if later.stage.needs_grid or later.stage.needs_all:
                # Before the encoder only some methods can act at all.
                first = "" if earlier.stage.place is Place.ENCODER_INPUT else f"put {later.method} first, or "
                raise ValueError(
                    f"{later.method} needs every token of a picture, so it cannot follow {earlier.method}; {first}use "
                    "one of the two."
                )
        if self.encoder_input_stages and self.compares_pixels:
            earlier = self.encoder_input_stages[-1]
            later = next(s for s in self.encoder_output_stages if "pixel_steps" in s.signals)
            raise ValueError(
                f"{later.method} compares the pixels of neighbouring tokens, which {earlier.method} replaces; use one "
                "of the two."
            )
        if self.weighs_keys:  # different numbers of tokens need a bias only where a batch has them
            for block in integration.encoder_blocks:
                self.check_key_bias(integration.encoder_attention_implementation(block))
        # Several stages before the language model, one position rule: the last one's.
        self.door_positions: Positions = encoder_stages[-1].positions if encoder_stages else "original"

    def _by_layer(self, place: Place, neurons: bool = False) -> dict[int, ChainStage]:
        stages: dict[int, ChainStage] = {}
        for stage in (s for s in self.stages if s.stage.place is place and ("activations" in s.signals) is neurons):
            for layer in stage.layers:
                if layer in stages:
                    raise ValueError(
                        f"{stages[layer].method} and {stage.method} both act at the {place.value} of layer {layer}; "
                        "use one of the two, or give them different layers."
                    )
                stages[layer] = stage
        return stages

    @property
    def label(self) -> str:
        """The methods by name, for reports and errors."""
        return " + ".join(self.names)

    def check_key_bias(self, implementation: str) -> None:
        """Refuse an attention implementation of vision blocks that cannot add to the logits of keys.

        Raises:
            ValueError: It cannot; the message says which method needs it, for what, and what to do.
        """
        if implementation in ("sdpa", "eager"):
            return
        ragged = [s.method for s in self.encoder_layer_stages if s.stage.ragged]
        weighs = [s.method for s in self.encoder_layer_stages if s.stage.proportional]
        why = "keeps different numbers of tokens per picture in the encoder, and their padding must be hidden"
        remedy = "load the model with attn_implementation={'vision_config': 'sdpa'}"
        if not ragged:
            why = "weighs keys by size in the encoder"
            if all(hasattr(method, "proportional") for method in self.methods if method.name in weighs):
                remedy += ", or set proportional=False"
        raise ValueError(
            f"{(ragged or weighs)[0]} {why}, which the vision tower's attention implementation {implementation!r} "
            f"cannot; {remedy}."
        )

    def _check(self, stage: ChainStage, integration: Integration) -> None:
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
        for observation in stage.stage.observations:
            self._check_observation(stage, observation, integration)
        if stage.stage.hides:
            self._check_hides(stage)
        if stage.stage.trial is not None:
            self._check_trial(stage, stage.stage.trial, integration)
        if stage.stage.text and stage.stage.place is not Place.CACHE:
            raise TypeError(f"{stage.method}: only a stage at the cache can evict text.")
        if stage.stage.decodes and stage.stage.place not in (Place.CACHE, Place.ATTENTION):
            raise TypeError(f"{stage.method}: only stages at the cache and at the attention can act while decoding.")
        if stage.stage.alike is not None and stage.stage.place is not Place.ATTENTION:
            raise TypeError(f"{stage.method}: only a stage at the attention can need the same entries elsewhere.")
        if stage.stage.late and (stage.stage.place is not Place.CACHE or stage.signals or stage.stage.decodes):
            raise TypeError(f"{stage.method}: a late stage acts at the cache, once, and gets no signals.")
        if stage.stage.turns and not (stage.stage.place is Place.CACHE and stage.stage.decodes):
            raise TypeError(
                f"{stage.method}: a stage that acts before further turns acts at the cache, at later calls."
            )
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

    def _check_hides(self, stage: ChainStage) -> None:
        if stage.stage.place is not Place.DECODER_LAYER or len(stage.layers) != 1 or stage.positions != "original":
            raise TypeError(f"{stage.method}: tokens can be hidden at one decoder layer, and keep their positions.")
        later = self.stages[self.stages.index(stage) + 1 :]
        if later:
            raise ValueError(
                f"{stage.method} hides tokens that stay where they are, so that {later[0].method} behind it would "
                "decide on what nobody sees; let them leave instead (hide=False), or put it last."
            )

    def _check_trial(self, stage: ChainStage, trial: int, integration: Integration) -> None:
        if stage.stage.place is not Place.DECODER_LAYER or stage.layers != (0,):
            raise TypeError(f"{stage.method}: only a stage at decoder layer 0 can ask for a trial run.")
        if stage.stage.mixes or stage.stage.observations:
            raise TypeError(f"{stage.method}: after a trial run tokens can only leave; nothing is noted of layers.")
        check_layer("trial", trial, 1, len(integration.decoder_layers) - 1)

    def _check_observation(self, stage: ChainStage, observation: Observation, integration: Integration) -> None:
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
