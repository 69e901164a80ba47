"""Merges similar visual tokens of every picture, tile and frame before the language model, in rounds of pairs.

In every round, tokens at even places join the most similar of those at odd places, the best pairs first; a round leaves
half of the tokens at least, and the last one meets the budget.

Paper: "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning", ICCV 2025, arXiv 2412.03248.
Authors' code: github.com/LaVi-Lab/AIM.
Differs from the paper in: only the merging, not yet the pruning inside the language model; pictures are merged behind
the projector, as videos are (there, on LLaVA-1.5: before it); a merged token takes the place and the position of the
one that the others joined (there: the first places of the prompt, or on Qwen2-VL those of a smaller picture); the last
round meets the budget to the token (there, an odd number of tokens leaves one or two more).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.kernels import bipartite_matching, gather_rows, merge_by_owner, owner_map
from vtprune.methods._select import check_choice, given, index_mask
from vtprune.methods.base import EncoderSignal, Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register


@register("aim")
@dataclasses.dataclass(frozen=True)
class AIM(Method):
    """Iterative token merging at the encoder's output.

    Every round but the last halves the tokens. The paper's presets are 0.25 for videos (98, then 49 of 196 leave), and
    for LLaVA-1.5 0.4375 (288, then 36 of 576) or 0.125, there with metric="keys".
    """

    kind = "merging"
    places = (Place.ENCODER_OUTPUT,)
    paper = "AIM, ICCV 2025, arXiv 2412.03248"
    cost = "N^2 C / 3 for the similarities of all rounds"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture
    metric: Literal["features", "keys"] = "features"  # similarity of projected features, or of the encoder's last keys
    positions: Positions = "auto"  # position ids after the merge: "original", "compact" or "auto"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("metric", self.metric, ("features", "keys"))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One merge at the encoder's output, in every tile and frame by itself."""
        keys = EncoderSignal("keys", last_block(model)) if self.metric == "keys" else None
        return [
            Stage(
                Place.ENCODER_OUTPUT,
                functools.partial(self.decide, keys=keys),
                signals=frozenset({"projected"} if keys is None else {"projected", keys}),
                positions=self.positions,
                mixes=True,
                scope="tile",
                budget=self.keep,
            )
        ]

    def decide(self, pictures: Pictures, keys: EncoderSignal | None = None) -> Keep | None:
        """Merge until the budget is met."""
        projected = given(pictures.projected, self.name, "projected")
        metric = projected if keys is None else given(pictures.signals.get(keys), self.name, str(keys))
        tokens, count = pictures.tokens, pictures.count(self.keep)
        if count >= tokens:
            return None
        rounds = merge_rounds(metric, halvings(tokens, count))
        where, owner = places(rounds, tokens)

        def mix(x: Tensor) -> Tensor:
            merged = merge(x, rounds)[-1]
            return x.scatter(1, where.unsqueeze(-1).expand_as(merged), merged)

        return Keep(index_mask(where, tokens), mix, owner)


def last_block(model: ModelInfo) -> int:
    """The vision block whose keys say what is similar: the first one behind those that are used, or the last of them.

    Raises:
        ValueError: No block's keys are known.
    """
    if not model.attention_blocks:
        raise ValueError(f"aim cannot work on {model.family}: its encoder's keys are not known; use metric='features'.")
    behind = [block for block in model.attention_blocks if block >= model.encoder_layers]
    return min(behind) if behind else max(model.attention_blocks)


def halvings(tokens: int, count: int) -> list[int]:
    """How many tokens leave in each round, at most half of them, until `count` are left."""
    leaving = []
    while tokens > count:
        leaving.append(min(tokens // 2, tokens - count))
        tokens -= leaving[-1]
    return leaving


class Round(NamedTuple):
    """One round of merging: unmerged even tokens come first, most similar to a neighbour first, then the odd ones.

    Attributes:
        owner: (pictures, tokens before), the token after the round that each becomes part of.
        tokens: Number of tokens after the round.
        source: (pictures, tokens after), the token before the round whose place each takes.
    """

    owner: Tensor
    tokens: int
    source: Tensor


def merge_rounds(metric: Tensor, leaving: Sequence[int]) -> list[Round]:
    """Match even tokens with odd ones by the cosine of metric (pictures, tokens, channels), round by round.

    So many even tokens, at most half of all tokens, become part of the odd token that they are most similar to; a round
    of none leaves all where they are. The metric of a merged token is the plain mean of what it was made of in this
    round.
    """
    rounds = []
    metric = metric.detach().float()
    for merges in leaving:
        tokens = metric.shape[1]
        if merges <= 0 or tokens < 2:
            every = torch.arange(tokens, device=metric.device).expand(len(metric), -1)
            rounds.append(Round(every, tokens, every))
            continue
        matching = bipartite_matching(metric, merges)
        owner, left = owner_map(matching, tokens)
        odd = torch.arange(1, tokens, 2, device=metric.device).expand(len(metric), -1)
        rounds.append(Round(owner, left, torch.cat((2 * matching.unmerged, odd), 1)))
        metric, _ = merge_by_owner(metric, owner, left)
    return rounds


def merge(x: Tensor, rounds: Sequence[Round]) -> list[Tensor]:
    """What features x (pictures, tokens, channels) are after each round: plain means, sizes are not kept."""
    after = []
    for one in rounds:
        x, _ = merge_by_owner(x, one.owner, one.tokens)
        after.append(x)
    return after


def places(rounds: Sequence[Round], tokens: int) -> tuple[Tensor, Tensor]:
    """Where the tokens after the last round were before the first one, and the same for all tokens' owners.

    Returns:
        (pictures, tokens after) and (pictures, tokens), int64.
    """
    first = rounds[0].owner
    where = torch.arange(tokens, device=first.device).expand(len(first), -1)
    group = where
    for one in rounds:
        where = where.gather(1, one.source)
        group = one.owner.gather(1, group)
    return where, gather_rows(where.unsqueeze(-1), group).squeeze(-1)
