"""Lets all visual tokens leave once the model's early prediction of the first word of its answer has settled.

Behind every decoder layer the model's own last norm and head say what it would answer if no further layer ran. Where
that stays the same for some layers, or becomes certain, the picture is no longer needed.

Not from one paper: the patience of "BERT Loses Patience" (arXiv 2006.04152) and the entropy of DeeBERT (arXiv
2004.12993), read through the untrained head ("logit lens"), put to visual exits such as DyVTE's (arXiv 2411.19628).
Text goes through all layers, and the layers before the exit keep their visual keys and values for decoding. It looks at
the first word only: a longer answer is decoded from what the text has absorbed by then.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.methods._exits import leave
from vtprune.methods._select import check_choice, check_number, check_whole_numbers, given
from vtprune.methods.base import Keep, Method, ModelInfo, Place, Positions, Stage, VisualTokens, check_layer
from vtprune.methods.registry import register


@register("patience")
@dataclasses.dataclass(frozen=True)
class Patience(Method):
    """Visual exit by agreement or entropy of early predictions, row by row."""

    kind = "exit"
    places = (Place.DECODER_LAYER,)
    cost = "the language model's head on one token, per decoder layer from `first` on"

    rule: Literal["agreement", "entropy"] = "agreement"  # the same word as behind the layer before, or low entropy
    patience: int = 2  # for how many layers in a row, >= 1
    entropy: float = 0.25  # with rule="entropy": at most this share of the largest possible entropy, in [0, 1]
    first: int | None = None  # first layer at whose input predictions are looked at, >= 1; None: half of the layers
    last: int | None = None  # first layer that never sees visual tokens; None: they stay where nothing settles
    positions: Positions = "original"  # position ids after the removal: "original" or "compact"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("rule", self.rule, ("agreement", "entropy"))
        if isinstance(check_whole_numbers("patience", self.patience, least=1), tuple):
            raise TypeError(f"patience must be a whole number >= 1, got {self.patience!r}.")
        check_number("entropy", self.entropy, 0, 1)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """A look at the input of every decoder layer from `first` to `last`."""
        final = model.decoder_layers - 1
        last = final if self.last is None else check_layer("last", self.last, 1, final)
        first = min(max(1, model.decoder_layers // 2), last) if self.first is None else self.first
        first = check_layer("first", first, 1, last)
        layers = tuple(range(first, last + 1))
        return [Stage(Place.DECODER_LAYER, self.decide, layers, frozenset({"prediction"}), self.positions)]

    def decide(self, tokens: VisualTokens) -> Keep:
        """Rows whose prediction has been settled for long enough give up their tokens, at layer `last` all rows."""
        logits = given(tokens.prediction, self.name, "prediction").float()
        word = logits.argmax(1)
        if self.rule == "entropy":
            settled = relative_entropy(logits) <= self.entropy
        else:
            settled = word == tokens.memory.get("word", torch.full_like(word, -1))
        streak = torch.where(settled, tokens.memory.get("streak", torch.zeros_like(word)) + 1, 0)
        tokens.memory.update(word=word, streak=streak)
        return leave(tokens, (streak >= self.patience) | (tokens.layer == self.last))


def relative_entropy(logits: Tensor) -> Tensor:
    """Entropy of predictions (rows, words) as a share of the largest possible one, (rows,)."""
    log = logits.log_softmax(1)
    return -(log.exp() * log).sum(1) / math.log(max(logits.shape[1], 2))
