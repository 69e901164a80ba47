"""Keeps the tokens that the encoder attends to most, and folds all others into a few tokens with similar keys.

The few are spread evenly over what is not attended to, and each gets the mean of the tokens whose keys are most like
its own added.

Paper: "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025, arXiv 2412.04467. Authors'
code: github.com/dvlab-research/VisionZip.
Differs from the paper in: the [CLS] token, one of the paper's dominant tokens in LLaVA, has no slot in the prompt; a
patch takes its place. Contextual tokens stand where their target stood, as in the authors' Qwen-VL code (in LLaVA: at
the end), and what is folded is features behind the projector, also in LLaVA. Similarities are float32; tiles and frames
are decided one by one, with equal shares. Not in here: the projector that the paper also fine-tunes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget
from vtprune.kernels import compact_index, gather_rows, merge_by_owner
from vtprune.methods._select import check_number, given, top_k_mask
from vtprune.methods.base import EncoderSignal, Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("visionzip")
@dataclasses.dataclass(frozen=True)
class VisionZip(Method):
    """Dominant and contextual tokens at the encoder's output."""

    kind = "merging"
    places = (Place.ENCODER_OUTPUT,)
    paper = "VisionZip, CVPR 2025, arXiv 2412.04467"
    cost = "N D with [CLS], N^2 D without; N c d for c contextual tokens"

    keep: Budget = 0.111  # ratio in (0, 1] or tokens per picture; of 576 the paper has 192, 128 and 64; Qwen .7 and .5
    contextual: float = 0.15625  # their share of the budget, in [0, 1]: 10 of 64, 20 of 128, 30 of 192; Qwen .07, .1
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("contextual", self.contextual, 0, 1)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, on every tile and frame with the same budget."""
        keys = EncoderSignal("keys", model.scored_block)
        return [
            Stage(
                Place.ENCODER_OUTPUT,
                functools.partial(self.decide, asked=keys, heads=model.encoder_heads),
                signals=frozenset({"encoder_attention", keys}),
                positions=self.positions,
                mixes=True,
                scope="tile",
                budget=self.keep,
            )
        ]

    def decide(self, pictures: Pictures, asked: EncoderSignal, heads: int) -> Keep:
        """Keep dominant tokens, and targets with the mean of what resembles them."""
        attention = given(pictures.attention, self.name, "encoder_attention")
        keys = given(pictures.signals.get(asked), self.name, str(asked))
        count = pictures.count(self.keep)
        contextual = contextual_count(count, self.contextual)
        dominant = top_k_mask(attention, count - contextual)
        targets, owner = contextual_targets(mean_of_heads(keys, heads), dominant, contextual)
        return Keep(dominant.scatter(1, targets, True), functools.partial(fold, owner=owner), owner)


def contextual_count(count: int, share: float) -> int:
    """How many of `count` tokens are contextual: the share, rounded down; one at least, if there is one to spare."""
    return max(int(count * share), int(share > 0 and count > 1))


def mean_of_heads(keys: Tensor, heads: int) -> Tensor:
    """What similarity is measured on: keys (pictures, tokens, heads * head_dim) as (pictures, tokens, head_dim)."""
    return keys.detach().float().unflatten(-1, (heads, -1)).mean(-2)


def contextual_targets(metric: Tensor, dominant: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Spread targets evenly over the tokens that are not dominant, and give each of these its most similar target.

    Args:
        metric: (pictures, tokens, channels); similarity is the cosine.
        dominant: bool, (pictures, tokens), equally many of every picture.
        count: Number of targets, at most as many as tokens are left.

    Returns:
        Targets (pictures, count) in ascending order, and for every token its target (pictures, tokens); dominant
        tokens and targets own themselves.
    """
    itself = torch.arange(dominant.shape[1], device=dominant.device).expand_as(dominant)
    left, _ = compact_index(~dominant)
    targets = left[:, :: max(1, left.shape[1] // max(count, 1))][:, :count]
    if count == 0:
        return targets, itself
    unit = F.normalize(metric.float(), dim=-1)
    similarity = unit @ gather_rows(unit, targets).transpose(1, 2)  # (pictures, tokens, count)
    owner = targets.gather(1, similarity.argmax(-1))
    alone = dominant.scatter(1, targets, True)
    return targets, torch.where(alone, itself, owner)


def fold(x: Tensor, owner: Tensor) -> Tensor:
    """Add to every token of x (pictures, tokens, channels) the mean of the others that it owns: its sum, no average."""
    away = owner != torch.arange(owner.shape[1], device=owner.device)
    mean, _ = merge_by_owner(x.float(), owner, x.shape[1], away.float())
    return (x.float() + mean).to(x.dtype)
