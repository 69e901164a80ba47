"""Keeps a small diverse set after the encoder, and later lets all visual tokens leave once text has absorbed them.

The set is spread out over the features (k-center); the exit comes when the attention of the text to the picture has
faded.

Paper: "ToDRE: Visual Token Pruning via Diversity and Task Awareness for Efficient Large Vision-Language Models",
arXiv 2505.18757 (v1 k-center, v2 max-sum). No authors' code was found.
Differs from the paper in: only its abstracts were available, so this is ToDRE-style, no reproduction. Ours are: the
cosine distance, the first centre, the exit rule (visual attention mass below `tau` times the largest one since
`l_min`, at the latest after `l_max`), its defaults, and that every row of a batch leaves by itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.kernels import greedy_select
from vtprune.methods._select import check_choice, check_number, given, index_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Pictures, Place, Positions, Stage, VisualTokens, check_layer
from vtprune.methods.registry import register

SIGNALS = {"last": "last_query", "text": "text_queries"}
RULES: dict[str, Literal["maxmin", "maxsum"]] = {"kcenter": "maxmin", "maxsum": "maxsum"}


@register("todre")
@dataclasses.dataclass(frozen=True)
class ToDRE(Method):
    """Diverse selection after the encoder, adaptive visual exit in the decoder."""

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT, Place.DECODER_LAYER)
    paper = "ToDRE, arXiv 2505.18757"
    cost = "N^2 C for the first pick, N K C for the others; K C per decoder layer that looks for the exit"

    keep: Budget = 0.10  # ratio in (0, 1] or tokens per picture after the encoder; the paper removes 90 percent
    init: Literal["nn", "cls", "mean"] = "nn"  # first centre: most isolated, most attended by the encoder, off the mean
    objective: Literal["kcenter", "maxsum"] = "kcenter"  # v1 or v2 of the paper
    features: Literal["encoded", "projected"] = "encoded"  # features before or after the projector
    l_min: int | None = None  # first layer whose visual attention mass is looked at, >= 0; None: half of the layers
    l_max: int | None = None  # last layer that may see visual tokens; None: 0.8 of the layers
    tau: float = 0.3  # exit once the mass falls below this share of its largest value so far, in [0, 1]
    query: Literal["last", "text"] = "last"  # whose attention: the last prompt token's, or all text after the picture
    positions: Positions = "original"  # position ids after a removal: "original" or "compact"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("init", self.init, ("nn", "cls", "mean"))
        check_choice("objective", self.objective, tuple(RULES))
        check_choice("features", self.features, ("encoded", "projected"))
        check_choice("query", self.query, tuple(SIGNALS))
        check_number("tau", self.tau, 0, 1)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """A selection on every tile and frame, and exits at the inputs of the decoder layers l_min + 1 to l_max + 1."""
        asked = {"projected"} if self.features == "projected" else set()
        if self.init == "cls":
            asked.add("encoder_attention")
        first, last = self.window(model.decoder_layers)
        layers = tuple(range(first + 1, last + 2))
        signals = frozenset({SIGNALS[self.query]})
        return [
            Stage(
                Place.ENCODER_OUTPUT, self.select, (), frozenset(asked), self.positions, scope="tile", budget=self.keep
            ),
            Stage(Place.DECODER_LAYER, functools.partial(self.leave, hard=layers[-1]), layers, signals, self.positions),
        ]

    def window(self, layers: int) -> tuple[int, int]:
        """`l_min` and `l_max` for a decoder of so many layers; the last layer is never an exit, nothing follows it."""
        last = min(round(0.8 * layers), layers - 2) if self.l_max is None else self.l_max
        last = check_layer("l_max", last, 0, layers - 2)
        first = min(round(0.5 * layers), last) if self.l_min is None else self.l_min
        return check_layer("l_min", first, 0, last), last

    def select(self, pictures: Pictures) -> Keep:
        """Stage 1: keep a diverse set."""
        x = pictures.encoded if self.features == "encoded" else given(pictures.projected, self.name, "projected")
        count = pictures.count(self.keep)
        if count >= pictures.tokens:
            return Keep(x.new_ones(x.shape[:2], dtype=torch.bool))
        first: Literal["nearest_neighbour", "mean"] | Tensor = "mean" if self.init == "mean" else "nearest_neighbour"
        if self.init == "cls":
            first = given(pictures.attention, self.name, "encoder_attention").argmax(1)
        picks = greedy_select(x, count, first=first, rule=RULES[self.objective])
        return Keep(index_mask(picks, pictures.tokens))

    def leave(self, tokens: VisualTokens, hard: int) -> Keep | None:
        """Stage 2: rows whose text has absorbed the picture, and all rows at layer `hard`, give up their tokens."""
        if tokens.layer >= hard:
            return Keep(torch.zeros_like(tokens.valid))
        mass = given(tokens.attention, self.name, SIGNALS[self.query]).sum(1)  # (rows,)
        largest = torch.maximum(mass, tokens.memory.get("largest mass", mass).to(mass.device))
        tokens.memory["largest mass"] = largest
        leaving = absorbed(mass, largest, self.tau)
        return Keep(tokens.valid & ~leaving.unsqueeze(1)) if leaving.any() else None


def absorbed(mass: Tensor, largest: Tensor, tau: float) -> Tensor:
    """Rows (rows,) whose visual attention mass has fallen below the share `tau` of its largest value so far."""
    return mass < tau * largest
