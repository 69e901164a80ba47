"""A stage in a chain, and what can be asked for at each place."""

from __future__ import annotations

import dataclasses

from vtprune.methods.base import Decide, EncoderSignal, Place, Positions, Stage

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
