"""Drops patches behind some blocks of the vision encoder, by a page rank of their attention and by likeness.

Patches vote for one another by attention, and votes of important patches count more, which is iterated. Of patches that
resemble a more important one a few leave first; then the least important.

Paper: "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers",
CVPR 2024, arXiv 2305.17328. Authors' code: none.
Differs from the paper in: blocks, iterations and numbers are our own, as it has none for encoders of language models:
`keep` names the patches left at the end, and every stage leaves the same share of what arrives; variances are of
importances with mean 1, over patches; rows of attention are normalised over the patches that are left; the bounds on
variances, made for DeiT, are taken to say nothing about an encoder of which they would leave fewer than half the heads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget, token_count
from vtprune.kernels import compact_index, gather_rows
from vtprune.kernels._cosine import live_unit_rows
from vtprune.methods._select import check_number, check_whole_numbers, given, top_k_mask
from vtprune.methods._votes import pass_votes
from vtprune.methods.base import EncoderTokens, Keep, Method, ModelInfo, Place, Positions, Stage, check_layer
from vtprune.methods.registry import register

DEPTHS = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6)
ITERATIONS = (30, 10, 5, 5, 1)


@register("zero_tprune")
@dataclasses.dataclass(frozen=True)
class ZeroTPrune(Method):
    """Importance and similarity pruning on the attention graph; the class token stays."""

    kind = "pruning"
    places = (Place.ENCODER_LAYER,)
    paper = "Zero-TPrune, CVPR 2024, arXiv 2305.17328"
    cost = "(i + 3) n^2 D per block it acts behind, i iterations of the page rank"

    keep: Budget = 0.25  # ratio in (0, 1] or patches per picture behind the last stage
    blocks: tuple[int, ...] | None = None  # behind which it acts; None: 4, 8, 12, 16, 20 of 24
    iterations: tuple[int, ...] | None = None  # of the page rank, one number for each block; None: 30, 10, 5, 5, 1
    similar: float = 0.03  # share of the picture's patches that leave for likeness at every stage, in [0, 1]
    low: float = 0.01  # heads count whose importances have a variance of at least this
    high: float = 0.7  # and at most this; all heads where fewer than half of them would count
    uniform: bool = False  # start without the class token's weight, the root of the number of tokens
    positions: Positions = "auto"  # position ids in the language model: "compact", "original" or "auto" (see `Stage`)

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("similar", self.similar, 0, 1)
        check_number("low", self.low, 0, 1e6)
        check_number("high", self.high, self.low, 1e6)
        for name, least in (("blocks", 0), ("iterations", 1)):
            if (values := getattr(self, name)) is not None:
                numbers = check_whole_numbers(name, values, least)
                object.__setattr__(self, name, (numbers,) if isinstance(numbers, int) else numbers)
        if self.iterations is not None and (self.blocks is None or len(self.blocks) != len(self.iterations)):
            raise ValueError(f"iterations={self.iterations!r} needs as many blocks, got blocks={self.blocks!r}.")
        if self.blocks is not None and list(self.blocks) != sorted(set(self.blocks)):
            raise ValueError(f"blocks must be in order, each once, got {self.blocks!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One removal behind every block named."""
        last = model.encoder_layers - 1
        plan = {min(round(model.encoder_layers * depth), last): n for depth, n in zip(DEPTHS, ITERATIONS, strict=True)}
        if self.blocks is not None:
            for block in self.blocks:
                check_layer("blocks", block, 0, last)
            own = self.iterations or [plan[min(plan, key=lambda b: abs(b - block))] for block in self.blocks]
            plan = dict(zip(self.blocks, own, strict=True))
        decide = functools.partial(self.decide, plan=tuple(plan.items()))
        return [
            Stage(
                Place.ENCODER_LAYER,
                decide,
                tuple(plan),
                positions=self.positions,
                after_block=True,
                prunes=True,
            )
        ]

    def decide(self, tokens: EncoderTokens, plan: tuple[tuple[int, int], ...]) -> Keep | None:
        """Drop what resembles others, then what matters least."""
        first, there = tokens.protected, tokens.sizes.shape[1] - tokens.protected
        stage = [block for block, _ in plan].index(tokens.layer)
        wanted = token_count(self.keep, tokens.patches)
        left = max(wanted, round(tokens.patches * (wanted / tokens.patches) ** ((stage + 1) / len(plan))))
        if left >= there:
            return None
        queries, keys = given(tokens.queries, self.name, "queries"), given(tokens.head_keys, self.name, "head_keys")
        rank = functools.partial(self._importance, first=first, scale=tokens.scale)
        likely = rank(queries, keys, iterations=1)
        drop = min(round(self.similar * tokens.patches), there - left, there // 2)
        mask = ~look_alikes(likely, keys[:, :, first:].transpose(1, 2).flatten(2), drop)
        stays = torch.cat((mask.new_ones(len(mask), first), mask), 1)
        index, _ = compact_index(stays)
        queries, keys = (gather_rows(x.transpose(1, 2), index).transpose(1, 2) for x in (queries, keys))
        best = top_k_mask(rank(queries, keys, iterations=plan[stage][1]), left)
        best = torch.cat((best.new_ones(len(best), first), best), 1)
        return Keep(torch.zeros_like(stays).scatter_(1, index, best))

    def _importance(self, queries: Tensor, keys: Tensor, *, first: int, scale: float, iterations: int) -> Tensor:
        per_head = page_rank(queries, keys, iterations, scale=scale, cls=bool(first) and not self.uniform)
        return join_heads(per_head[:, :, first:], self.low, self.high)


def page_rank(queries: Tensor, keys: Tensor, iterations: int, *, scale: float, cls: bool = False) -> Tensor:
    """Votes that each token ends up with, mean 1: float32, (pictures, heads, tokens).

    Args:
        queries: (pictures, heads, tokens, head_dim).
        keys: Likewise.
        iterations: How often votes are passed on along the attention, from voter to what it looks at.
        scale: Factor on the products of queries and keys.
        cls: Token 0 starts with the root of the number of tokens times the weight of each other.
    """
    tokens = queries.shape[2]
    votes = queries.new_ones(queries.shape[:3], dtype=torch.float32)
    if cls:
        votes[..., 0] = tokens**0.5
    return pass_votes(votes * tokens / votes.sum(-1, keepdim=True), queries, keys, iterations, scale=scale)


def join_heads(votes: Tensor, low: float = 0.01, high: float = 0.7) -> Tensor:
    """Importance over heads (pictures, heads, patches): root mean square of those whose variance is in [low, high].

    Of all heads where that leaves fewer than half of a picture's.
    """
    variance = votes.var(2, unbiased=False)
    counts = (low <= variance) & (variance <= high)
    counts = (counts | (counts.sum(1, keepdim=True) * 2 < counts.shape[1])).float()
    return ((votes**2 * counts[..., None]).sum(1) / counts.sum(1, keepdim=True)).sqrt()


def look_alikes(importance: Tensor, features: Tensor, count: int) -> Tensor:
    """Of the less important half, the `count` patches most like one of the other half: bool, (pictures, patches).

    Args:
        importance: (pictures, patches); an odd one belongs to the more important half.
        features: (pictures, patches, channels), compared by cosine.
        count: How many.
    """
    order = importance.argsort(dim=1, descending=True, stable=True)
    half = order.shape[1] - order.shape[1] // 2
    lesser = ~top_k_mask(importance, half)
    unit, _ = live_unit_rows(features, None)
    other = unit.gather(1, order[:, :half, None].expand(-1, -1, unit.shape[2]))
    likeness = (unit @ other.transpose(1, 2)).amax(2)
    return top_k_mask(likeness, count, lesser)
