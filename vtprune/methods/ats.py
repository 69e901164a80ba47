"""Samples the patches that stay inside the vision encoder, from the attention that they receive; pictures differ.

A patch matters by the class token's attention to it times the length of its value. Taken as a distribution, and read
at equal steps, it yields many patches where importance is spread out, and few where it is not: steps that meet the same
patch keep it once.

Paper: "Adaptive Token Sampling for Efficient Vision Transformers", ECCV 2022, arXiv 2111.15667. Authors' code:
github.com/adaptivetokensampling/ATS.
Differs from the paper in: blocks and numbers of samples follow from `keep`, where the paper samples as many times as
there are patches in all blocks behind the first quarter (`samples` and `blocks` do that); heads are summed before
attention and value are multiplied, as in the authors' code; patches stay in the picture's order; padding of shorter
pictures takes no part in the distribution; encoders without a class token (SigLIP), which the paper does not cover, use
the attention that a patch receives on average from all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget, token_count
from vtprune.methods._importance import received
from vtprune.methods._select import check_whole_numbers, given, top_k_mask
from vtprune.methods.base import EncoderTokens, Keep, Method, ModelInfo, Place, Positions, Stage, check_layer
from vtprune.methods.registry import register


@register("ats")
@dataclasses.dataclass(frozen=True)
class ATS(Method):
    """Sampling between attention and MLP of a few encoder blocks.

    `keep` is the number of samples in the last of these blocks, and so the most patches that may stay; earlier blocks
    take more, in geometric steps. A picture that has no more patches than a block takes samples is left alone there.
    """

    kind = "pruning"
    places = (Place.ENCODER_LAYER,)
    paper = "ATS, ECCV 2022, arXiv 2111.15667"
    cost = "n D per block it acts in, with [CLS]; n^2 D without"
    adaptive = True

    keep: Budget = 0.25  # ratio in (0, 1] or patches per picture, an upper bound; without effect with `samples`
    samples: int | None = None  # samples in every block, whatever arrives; in the paper the number of patches
    blocks: tuple[int, ...] | None = None  # where it acts; None: a quarter, half and three quarters deep
    fill: bool = False  # add the next most important patches up to the number of samples
    positions: Positions = "auto"  # position ids in the language model: "compact", "original" or "auto" (see `Stage`)

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.samples is not None and not isinstance(check_whole_numbers("samples", self.samples, least=1), int):
            raise TypeError(f"samples must be one whole number, got {self.samples!r}.")
        if self.blocks is not None:
            blocks = check_whole_numbers("blocks", self.blocks, least=0)
            object.__setattr__(self, "blocks", tuple(sorted({blocks} if isinstance(blocks, int) else set(blocks))))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection in every block named."""
        last = model.encoder_layers - 1
        blocks = self.blocks or tuple(sorted({min(round(model.encoder_layers * x), last) for x in (0.25, 0.5, 0.75)}))
        for block in blocks:
            check_layer("blocks", block, 0, last)
        return [
            Stage(
                Place.ENCODER_LAYER,
                functools.partial(self.decide, blocks=blocks),
                blocks,
                frozenset({"values"}),
                self.positions,
                prunes=True,
                ragged=True,
            )
        ]

    def decide(self, tokens: EncoderTokens, blocks: tuple[int, ...]) -> Keep | None:
        """Sample patches; the class token stays."""
        first = tokens.protected
        valid = tokens.sizes[:, first:] > 0
        if self.samples is None:
            share = (blocks.index(tokens.layer) + 1) / len(blocks)
            wanted = token_count(self.keep, tokens.patches)
            count = max(wanted, round(tokens.patches * (wanted / tokens.patches) ** share))
            if count >= valid.shape[1]:
                return None
        else:
            count = self.samples
        values = given(tokens.values, self.name, "values")[:, first:]
        scores = significance(received(tokens, self.name)[:, first:], values)
        mask = sampled(scores, count, valid)
        if self.fill:
            mask = top_k_mask(scores.masked_fill(mask, torch.inf), mask.sum(1).clamp_min(count), valid)
        if self.samples is None:
            mask = torch.where(valid.sum(1, keepdim=True) > count, mask, valid)
        return Keep(torch.cat((torch.ones_like(mask[:, :1]).expand(-1, first), mask), 1))


def significance(attention: Tensor, values: Tensor) -> Tensor:
    """Attention (pictures, patches) times length of values (pictures, patches, channels), shares of a sum of 1."""
    scores = attention.float() * values.float().norm(dim=-1)
    return scores / scores.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def sampled(scores: Tensor, samples: int, valid: Tensor | None = None, *, crop: bool = False) -> Tensor:
    """Read the distribution of the scores at `samples` equal steps: bool, (pictures, patches).

    Patches are ordered by score; each step takes the one whose cumulated share is nearest, of equally near ones the
    first. Shares run from exactly 0 for the least patch, and steps from that of the one after it, up to 1.

    Args:
        scores: (pictures, patches), not negative.
        samples: Number of steps.
        valid: bool, (pictures, patches); the others are never taken. All if None.
        crop: Consider only the `samples` highest scores, as the authors' code does if there are more patches.
    """
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    order = scores.masked_fill(~valid, -torch.inf).argsort(dim=1, stable=True)
    there = valid.gather(1, order)
    cumulated = scores.float().masked_fill(~valid, 0).gather(1, order).cumsum(1)
    least = cumulated.masked_fill(~there, torch.inf).amin(1, keepdim=True)
    span = cumulated[:, -1:] - least
    share = torch.where(span > 0, (cumulated - least) / span, 1.0).masked_fill(~there, -torch.inf)
    start = share.masked_fill(share <= 0, torch.inf).amin(1, keepdim=True)
    steps = torch.linspace(0, 1, samples, device=scores.device) if samples > 1 else torch.ones(1, device=scores.device)
    heights = start + (1 - start) * steps
    if crop and samples < scores.shape[1]:
        share[:, : scores.shape[1] - samples] = -torch.inf
    above = torch.searchsorted(share, heights).clamp_max(share.shape[1] - 1)
    below = (above - 1).clamp_min(0)
    nearer = (heights - share.gather(1, below)).abs() <= (heights - share.gather(1, above)).abs()
    chosen = torch.where(nearer, below, above)
    # Patches of score 0 share a height; the first of them is taken.
    chosen = torch.searchsorted(share, share.gather(1, chosen))
    taken = torch.zeros_like(valid).scatter_(1, order.gather(1, chosen), True)
    return taken & valid
