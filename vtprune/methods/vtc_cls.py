"""Keeps the visual tokens that the class token attends to most, summed over the deeper blocks of the vision encoder.

Blocks disagree about what matters, and their sum is steadier than the last one alone.

Paper: "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs" (VTC-CLS), arXiv 2412.05819. Authors'
code: github.com/THU-MIG/VTC-CLS.
Differs from the paper in: scores are float32 (there: half precision); the ensemble starts at two thirds of the depth of
any encoder, as 16 does of 24, and ends at the block that puts out the features, as the authors' code does in LLaVA;
encoders without a class token (SigLIP, Qwen-VL) use the attention that a token receives on average, in Qwen2.5-VL from
blocks with full attention only; tiles and frames are decided one by one, with equal shares.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._select import given, top_k_mask
from vtprune.methods.base import EncoderSignal, Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("vtc_cls")
@dataclasses.dataclass(frozen=True)
class VTCCLS(Method):
    """Pruning at the encoder's output by an ensemble of encoder attention."""

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    paper = "VTC-CLS, arXiv 2412.05819"
    cost = "N D per block of the ensemble with [CLS]; N^2 D without"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture; the paper has 256, 128 and 64 of 576
    layer: int | None = None  # first block of the ensemble; -4: its last three; None: at two thirds of the depth
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.layer is not None and type(self.layer) is not int:
            raise TypeError(f"layer must be a whole number or None, got {self.layer!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, on every tile and frame with the same budget."""
        signals = tuple(EncoderSignal("attention", block) for block in ensemble(model, self.layer))
        return [
            Stage(
                Place.ENCODER_OUTPUT,
                functools.partial(self.decide, asked=signals),
                signals=frozenset(signals),
                positions=self.positions,
                scope="tile",
                budget=self.keep,
            )
        ]

    def decide(self, pictures: Pictures, asked: Sequence[EncoderSignal]) -> Keep:
        """Keep the tokens with the most attention over all blocks."""
        rows = [given(pictures.signals.get(signal), self.name, str(signal)) for signal in asked]
        return Keep(top_k_mask(summed(rows), pictures.count(self.keep)))


def ensemble(model: ModelInfo, first: int | None = None) -> tuple[int, ...]:
    """The blocks whose attention is summed up: from `first` to the one that puts out the features.

    Args:
        model: What is known of the model.
        first: Index of a block; a negative one counts back from the block behind the last used one, as in the paper's
            LLaVA, where there is one; None for two thirds of the depth, or the nearest used block that can be asked.

    Raises:
        ValueError: No block is left.
    """
    used = model.encoder_layers
    blocks = [block for block in model.attention_blocks if block < used]
    start = min((used + 1) * 2 // 3, model.attention_block(1)) if first is None else first
    start += used + 1 if start < 0 else 0
    chosen = tuple(block for block in blocks if block >= start)
    if start < 0 or not chosen:
        raise ValueError(
            f"layer must leave at least one vision block up to the last one used; their attention can be asked of "
            f"{blocks}, got layer={first!r}; negative ones count back from {used + 1}."
        )
    return chosen


def summed(attention: Sequence[Tensor]) -> Tensor:
    """Score of every token, (pictures, tokens), from the attention in several blocks: the plain sum, in float32."""
    return torch.stack([x.detach().float() for x in attention]).sum(0)
