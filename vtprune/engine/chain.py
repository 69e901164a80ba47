"""A chain of methods, checked against a model: the stages that the engine runs, in order."""

from __future__ import annotations

from collections.abc import Sequence

from vtprune.engine.chain_checks import check_together
from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.stage_checks import check_stage
from vtprune.integrations.base import Integration
from vtprune.methods.base import EncoderSignal, Method, ModelInfo, Place, Positions


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
            check_stage(stage, integration)
        check_together(self.stages, self.names)
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
        skipping = [s for s in self.stages if s.stage.skips]
        self.skipping = skipping[0] if skipping else None
        """The stage that lets tokens pass by decoder layers."""
        sharing = [s for s in self.stages if s.stage.shares]
        self.shares = bool(sharing)
        """Whether merged tokens stay on their slots and share a hidden state."""
        encoder_stages = self.encoder_input_stages + self.encoder_layer_stages + self.encoder_output_stages
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
