"""Visual tokens attend to nothing: only text asks, and reads the keys and values that visual tokens still have.

From one layer on, a visual token is updated by the layer's MLP alone, so that its keys and values remain those of a
token of that depth. No token leaves. What is saved of every such layer are the query and output projections of visual
tokens and all products of their queries; their keys, values and MLPs are made as ever, and decoding costs what it
costs. Without training, early layers should be left alone: it is there that the tokens of a picture are mixed.

Paper: EE-MLLM: A Data-Efficient and Compute-Efficient Multimodal Large Language Model, arXiv 2408.11795.
Authors' code: none found. Differs from the paper in: the paper trains a model in which no visual token asks in any
layer (layer=0); untouched models need a later layer, which the paper's variant without training does not tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from vtprune.methods._select import check_choice
from vtprune.methods._text import not_behind, text_before
from vtprune.methods.base import (
    Attend,
    Feed,
    LayerSlots,
    Method,
    ModelInfo,
    Part,
    Place,
    Stage,
    Width,
    check_layer,
)
from vtprune.methods.registry import register

Update = Literal["ffn", "vo", "frozen"]


@register("ee_mllm")
@dataclasses.dataclass(frozen=True)
class EEMLLM(Method):
    """Composite attention from one decoder layer on."""

    kind = "sparse"
    places = (Place.ATTENTION, Place.MLP)
    paper = "EE-MLLM: A Data-Efficient and Compute-Efficient Multimodal Large Language Model, arXiv 2408.11795"
    cost = "none"

    layer: int | None = None  # first layer in which visual tokens do not ask, >= 0; None: half of the layers
    update: Update = "ffn"  # of visual tokens: "ffn" (MLP), "vo" (their own value, then MLP) or "frozen" (nothing)
    prefix: bool = False  # let visual tokens attend to the text before them; with update="ffn"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("update", self.update, get_args(Update))
        if self.prefix and self.update != "ffn":
            raise ValueError(f"prefix=True needs update='ffn', got update={self.update!r}; leave one of the two out.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """All layers from the first one on."""
        first = model.decoder_layers // 2 if self.layer is None else self.layer
        layers = tuple(range(check_layer("layer", first, 0, model.decoder_layers - 1), model.decoder_layers))
        signals = frozenset({"cells"} if self.prefix else ())
        found = [Stage(Place.ATTENTION, self.attend, layers, signals, decodes=self.prefix)]
        return found if self.update != "frozen" else [*found, Stage(Place.MLP, text_only, layers)]

    def attend(self, slots: LayerSlots) -> Attend | None:
        """Text attends as ever; visual tokens to themselves, to the text before them, or to nothing."""
        if not slots.visual.shape[1]:
            return None
        text, visual = Part(slots.text[:, None]), slots.visual[:, None]
        if self.update == "vo":
            return Attend((text, Part(visual, itself=True)))
        if not self.prefix:
            return Attend((text,))
        entries, is_text = text_before(slots)
        seen = not_behind(entries, visual, slots.past) & is_text.unsqueeze(-2)
        return Attend((text, Part(visual, entries, sees=seen)))


def text_only(slots: LayerSlots) -> Feed:
    """The MLP is for text."""
    return Feed((Width(slots.text),))
