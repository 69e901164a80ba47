"""Merges similar visual tokens inside every block of the vision encoder, and spares those that it attends to.

As in ToMe the most similar pairs merge, but the attention that a token receives is taken from its similarity, so that
what matters stays apart.

Paper: "Turbo: Informativity-Driven Acceleration Plug-In for Vision-Language Large Models", ECCV 2024,
arXiv 2407.11717. Authors' code: github.com/anakin-skywalker-Joseph/Turbo.
Differs from the paper in: `keep` names the patches left at the end, and the merges per block follow from it; the weight
of attention, made for pictures of 577 tokens, grows and falls with the number of tokens (`balance="fixed"` for the
authors' code), as their attention does; tokens stay in the order of the picture. Encoders without a class token use the
attention that a token receives on average. Where tokens cannot merge between vision blocks (Qwen-VL, VipLlava), they
merge at the encoder's output, in as many rounds as it has blocks: by their projected features, and by the attention of
its last block, which merged tokens add up.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget
from vtprune.kernels import Matching, bipartite_matching, gather_rows, merge_by_owner, owner_map
from vtprune.methods._groups import average
from vtprune.methods._importance import received
from vtprune.methods._select import check_choice, check_number, given
from vtprune.methods.base import EncoderTokens, Group, Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register
from vtprune.methods.tome import check_merges, even_schedule, expand_schedule, merges_per_block

UNIT = 30.0
"""Factor on `alpha` in the authors' code."""
TOKENS = 577
"""Tokens of the pictures that it is made for, [CLS] among them."""


@register("turbo")
@dataclasses.dataclass(frozen=True)
class Turbo(Method):
    """Bipartite merging by similarity less attention, in every encoder block; the class token stays alone."""

    kind = "merging"
    places = (Place.ENCODER_LAYER, Place.ENCODER_OUTPUT)
    paper = "Turbo, ECCV 2024, arXiv 2407.11717"
    cost = "n^2 d / 4 + n D per encoder block with [CLS], n^2 D more without; n^2 C / 4 per round at the output"

    keep: Budget = 0.25  # ratio in (0, 1] or patches per picture after the last block; without effect once `r` is given
    r: int | tuple[int, ...] | None = None  # merges per block, a number for all or one for each; the paper has 30 to 40
    inflection: float = 0.0  # slope of the schedule of a single `r`, in [-1, 1]; -1 starts with 2 r and ends with 0
    alpha: float = 5.0  # weight of attention against similarity, >= 0; 0 is ToMe
    beta: float = 1.0  # how much that weight shrinks per merging block away from `gamma`, in [0, 1]; 1: not at all
    gamma: float = 0.0  # number of merging blocks after which it is largest, >= 0
    r_threshold: int = 0  # no merging among fewer tokens
    balance: Literal["scaled", "fixed"] = "scaled"  # whether the weight follows the number of tokens
    proportional: bool = True  # weigh attention by token size
    positions: Positions = "auto"  # position ids in the language model: "compact", "original" or "auto" (see `Stage`)

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        object.__setattr__(self, "r", check_merges(self.r, self.inflection))
        check_number("alpha", self.alpha, 0, float("inf"))
        check_number("beta", self.beta, 0, 1)
        check_number("gamma", self.gamma, 0, float("inf"))
        check_number("r_threshold", self.r_threshold, 0, float("inf"))
        check_choice("balance", self.balance, ("scaled", "fixed"))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One merge in every encoder block; where that cannot be, all of them at the encoder's output."""
        if isinstance(self.r, tuple) and len(self.r) > model.encoder_layers:
            raise ValueError(f"r must name at most {model.encoder_layers} blocks of this model, got {len(self.r)}.")
        if not model.encoder_stages:
            return [
                Stage(
                    Place.ENCODER_OUTPUT,
                    functools.partial(self.merge_at_once, layers=model.encoder_layers),
                    signals=frozenset({"projected", "encoder_attention"}),
                    positions=self.positions,
                    mixes=True,
                    scope="tile",
                    budget=self.keep if self.r is None else None,
                )
            ]
        if model.patches is not None:
            merges_per_block(self.keep, self.r, self.inflection, model.patches, model.encoder_layers)
        decide = functools.partial(self.decide, layers=model.encoder_layers)
        layers = tuple(range(model.encoder_layers))
        return [Stage(Place.ENCODER_LAYER, decide, layers, positions=self.positions, proportional=self.proportional)]

    def decide(self, tokens: EncoderTokens, layers: int) -> Group | None:
        """Merge as many pairs as the schedule has for this block of `layers`."""
        schedule = merges_per_block(self.keep, self.r, self.inflection, tokens.patches, layers)
        there = tokens.keys.shape[1]
        merges = min(schedule[tokens.layer], (there - tokens.protected) // 2)
        if merges <= 0 or there < self.r_threshold:
            return None
        merged = sum(n > 0 for n in schedule[: tokens.layer])
        value = received(tokens, self.name) * self.weight(merged, tokens.patches + tokens.protected)
        return turbo_step(tokens.keys, value, merges, tokens.protected)

    def merge_at_once(self, pictures: Pictures, layers: int) -> Keep | None:
        """Merge in rounds what an encoder of `layers` blocks puts out."""
        projected = given(pictures.projected, self.name, "projected")
        attention = given(pictures.attention, self.name, "encoder_attention").float()
        tokens, count = pictures.tokens, pictures.count(self.keep)
        if self.r is None:
            # A round merges at most half of the tokens, so that a shallow encoder may have too few blocks.
            schedule = even_schedule(tokens, count, max(layers, (-(-tokens // count) - 1).bit_length()))
        else:
            schedule = expand_schedule(self.r, layers, self.inflection)
        rounds: list[tuple[int, float]] = []
        there = tokens
        for merges in schedule:
            if (merges := min(merges, there // 2)) > 0 and there >= self.r_threshold:
                rounds.append((merges, self.weight(len(rounds), tokens)))
                there -= merges
        if not rounds:
            return None
        owner = merge_in_rounds(projected, attention / attention.sum(1, keepdim=True), rounds)
        mask = owner == torch.arange(tokens, device=owner.device)
        return Keep(mask, functools.partial(average, owner=owner), owner)

    def weight(self, merged: int, tokens: int) -> float:
        """What attention is multiplied by after `merged` blocks that merged, of pictures with so many tokens."""
        weight = attention_weight(self.alpha, self.beta, self.gamma, merged)
        return weight * tokens / TOKENS if self.balance == "scaled" else weight


def attention_weight(alpha: float, beta: float, gamma: float, merged: int) -> float:
    """What attention is multiplied by before it is taken from similarity, after `merged` blocks that merged."""
    return UNIT * alpha * beta ** abs(gamma - merged)


def turbo_step(keys: Tensor, value: Tensor, merges: int, protected: int = 0) -> Group:
    """Merge tokens at even places into their most similar ones at odd places: the similar ones of little value first.

    Args:
        keys: (pictures, tokens, channels), what similarity (cosine) is measured on.
        value: (pictures, tokens), taken from the similarity of a token that would be merged into another one.
        merges: How many, at most half of the unprotected tokens.
        protected: 1 if the first token is [CLS], which never merges.
    """
    tokens = keys.shape[1]
    # One more token, like nobody, and every token at an even place has a partner.
    even = keys if protected or tokens % 2 == 0 else F.pad(keys.float(), (0, 0, 0, 1), value=torch.nan)
    sources, destinations, _ = bipartite_matching(even, tokens, protected=protected)
    unit = F.normalize(keys.detach().float(), dim=-1)
    likeness = (gather_rows(unit[:, ::2], sources) * gather_rows(unit[:, 1::2], destinations)).sum(-1)
    scores = likeness - value.detach().float()[:, ::2].gather(1, sources)
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    worst = unit.new_full((len(keys), (tokens + 1) // 2), -torch.inf)
    order = worst.scatter(1, sources, scores).argsort(dim=1, descending=True, stable=True)
    merges = min(merges, (tokens - protected) // 2)
    merging, alone = order[:, :merges], order[:, merges:]
    partner = torch.zeros_like(order).scatter(1, sources, destinations).gather(1, merging)
    matching = Matching(merging, partner, alone.sort(dim=1).values if protected else alone)
    return Group(*owner_map(matching, tokens, protected=protected))


def merge_in_rounds(features: Tensor, attention: Tensor, rounds: Sequence[tuple[int, float]]) -> Tensor:
    """For every token (pictures, tokens) the one that stands for it after several rounds of `turbo_step`.

    Args:
        features: (pictures, tokens, channels), averaged over groups.
        attention: (pictures, tokens), added up over groups.
        rounds: How many merge, and what attention is multiplied by, in each round.
    """
    group = torch.arange(features.shape[1], device=features.device).repeat(len(features), 1)
    stands = group  # (pictures, groups), the token that stands for each of them
    for merges, weight in rounds:
        groups = stands.shape[1]
        metric, _ = merge_by_owner(features.detach().float(), group, groups)
        value = attention.new_zeros(stands.shape).scatter_add(1, group, attention)
        step = turbo_step(metric, value * weight, merges)
        # A token at an odd place never merges into another one, and so stands for its group.
        place = torch.arange(groups, device=group.device)
        rank = torch.where(place % 2 == 1, place, place - groups).expand_as(stands)
        first = torch.full_like(stands[:, : step.groups], -groups)
        stands = stands.gather(1, first.scatter_reduce(1, step.owner, rank, "amax") % groups)
        group = step.owner.gather(1, group)
    return stands.gather(1, group)
