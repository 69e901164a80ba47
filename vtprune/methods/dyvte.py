"""Lets all visual tokens leave at the first decoder layer whose trained router says that the text has read enough.

Behind every layer a small MLP of its own looks at two hidden states: the mean of the text behind the pictures but for
its last token, and that token. It needs no attention.

Paper: "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical Findings", arXiv
2411.19628. Authors' code: github.com/DoubtedSteam/DyVTE.
Differs from the paper in: every row of a batch leaves by itself (there: row 0 decides for all); routers are asked in
the prefill only, and a prompt that never exits goes on (there: an error at the first decoded token); a prompt with
fewer than two tokens of text behind its pictures never exits; `offset` is ours. What routers are trained with is in
vtprune.exit_labels; none come with this.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from vtprune.methods._exits import leave, mean_and_last
from vtprune.methods._select import check_number, given
from vtprune.methods.base import Keep, Method, ModelInfo, Place, Positions, Stage, VisualTokens
from vtprune.methods.registry import register


@register("dyvte")
@dataclasses.dataclass(frozen=True)
class DyVTE(Method):
    """Visual exit by trained routers, row by row.

    Their file is a .safetensors with "w1" (layers, hidden, 2 * width) and "w2" (layers, 2, hidden), for all decoder
    layers; no biases. The paper's have 2048 hidden units. The exit's depth is what they say: there is no budget.
    """

    kind = "exit"
    places = (Place.DECODER_LAYER,)
    paper = "DyVTE, arXiv 2411.19628"
    cost = "per decoder layer, T C for the mean and an MLP of 2 C by 2048 on one row"
    needs_text = True
    needs_training = True

    routers: str = ""  # file with the routers' weights; there is no default
    offset: float = 0.0  # added to the routers' logit for leaving; above 0 exits come earlier, the paper has 0
    positions: Positions = "original"  # position ids after the removal: "original" or "compact"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not isinstance(self.routers, str):
            raise TypeError(f"routers must be the path of a file, got {self.routers!r}.")
        check_number("offset", self.offset, -1e6, 1e6)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """A decision behind every decoder layer but the last, which nothing follows."""
        routers = Routers(self.routers, model.decoder_layers)
        decide = functools.partial(self.decide, routers=routers)
        layers = tuple(range(1, model.decoder_layers))
        return [Stage(Place.DECODER_LAYER, decide, layers, frozenset({"closing_text"}), self.positions)]

    def decide(self, tokens: VisualTokens, routers: Routers) -> Keep:
        """Rows whose router says so give up their tokens."""
        closing = given(tokens.closing, self.name, "closing_text")
        features, known = mean_and_last(closing, given(tokens.closing_valid, self.name, "closing_text"))
        logits = route(features, *routers.of(tokens.layer - 1, features))
        return leave(tokens, known & exits(logits, self.offset))


class Routers:
    """The routers' weights, as they are in their file; brought to the model's device and type when first used.

    Raises:
        ValueError: There is no such file, or it does not fit the model.
    """

    def __init__(self, path: str, layers: int) -> None:
        if not path or not Path(path).is_file():
            raise ValueError(
                f"dyvte needs trained routers: give a file of theirs as routers=..., got {path!r}; without training "
                "use patience, or exit at a fixed layer."
            )
        from safetensors.torch import load_file

        weights = load_file(path)
        if set(weights) != {"w1", "w2"} or weights["w1"].ndim != 3 or weights["w2"].ndim != 3:
            raise ValueError(f"routers must hold w1 (layers, hidden, 2 * width) and w2 (layers, 2, hidden): {path}.")
        self.w1, self.w2 = weights["w1"], weights["w2"]
        if self.w2.shape != (layers, 2, self.w1.shape[1]) or len(self.w1) != layers:
            raise ValueError(
                f"routers must be those of a model of {layers} decoder layers, got w1 {tuple(self.w1.shape)} and w2 "
                f"{tuple(self.w2.shape)} from {path}."
            )

    def of(self, layer: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of one layer's router, (hidden, 2 * width) and (2, hidden), beside its features."""
        if self.w1.shape[2] != features.shape[1]:
            width = features.shape[1] // 2
            raise ValueError(f"routers must be for the model's width {width}, got {self.w1.shape[2] // 2}.")
        if (self.w1.device, self.w1.dtype) != (features.device, features.dtype):
            self.w1, self.w2 = self.w1.to(features), self.w2.to(features)
        return self.w1[layer], self.w2[layer]


def route(features: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Logits (rows, 2) for staying and leaving, from features (rows, 2 * width)."""
    return F.linear(F.gelu(F.linear(features, w1)), w2).float()


def exits(logits: Tensor, offset: float = 0.0) -> Tensor:
    """Rows (rows,) that leave: where the second logit, and `offset`, is above the first."""
    return logits[:, 0] < logits[:, 1] + offset
