"""Merges similar visual tokens of every picture, tile and frame before the language model, in rounds of pairs.

In every round, tokens at even places join the most similar of those at odd places, the best pairs first; a round leaves
half of the tokens at least, and the last one meets the budget. Inside the language model, a growing share of what is
left may leave from layer to layer, by a page rank of the attention.

Paper: "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning", ICCV 2025, arXiv 2412.03248.
Authors' code: github.com/LaVi-Lab/AIM.
Differs from the paper in: pictures are merged behind the projector, as videos are (there, on LLaVA-1.5: before it); a
merged token takes the place and the position of the one that the others joined (there: the first places of the prompt,
or on Qwen2-VL those of a smaller picture); the last round meets the budget to the token (there, an odd number of tokens
leaves one or two more). Pruning is off unless asked for, so that `keep` is the whole budget (in the authors' code it is
off unless attention is "eager"); what leaves is gone (there: hidden by masks, so that it still votes in the first
iteration, as padding does), and rows of a batch with different numbers of text tokens each have their own count.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._rounds import halvings, merge, merge_rounds, places
from vtprune.methods._select import check_choice, check_number, check_whole_numbers, given, index_mask, top_k_mask
from vtprune.methods._votes import pass_votes
from vtprune.methods.base import (
    EncoderSignal,
    Keep,
    Method,
    ModelInfo,
    Pictures,
    Place,
    Positions,
    Stage,
    VisualTokens,
    check_layer,
)
from vtprune.methods.registry import register


@register("aim")
@dataclasses.dataclass(frozen=True)
class AIM(Method):
    """Iterative token merging at the encoder's output, and pruning from layer to layer of the decoder, if asked for.

    Every round but the last halves the tokens. The paper's presets are 0.25 for videos (98, then 49 of 196 leave), and
    for LLaVA-1.5 0.4375 (288, then 36 of 576) or 0.125, there with metric="keys". Its pruning begins behind layer 14 of
    28 (Qwen2-7B) or 13 of 32 (Vicuna-7B), `prune_from`, and lets an eighth leave per layer until nothing is left.
    """

    kind = "merging"
    places = (Place.ENCODER_OUTPUT,)
    paper = "AIM, ICCV 2025, arXiv 2412.03248"
    cost = "N^2 C / 3 for the similarities of all rounds; to prune, i + 1 times a layer's attention in i iterations"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture
    metric: Literal["features", "keys"] = "features"  # similarity of projected features, or of the encoder's last keys
    prune_from: int | None = None  # decoder layer behind which tokens begin to leave; None: they stay
    prune_step: float = 0.125  # share of the merged tokens that leaves behind each layer from there on, in (0, 1]
    temperature: float = 0.1  # of the attention that ranks them, > 0; below 1 it is sharper than the layer's own
    iterations: int = 5  # of the page rank, >= 1
    positions: Positions = "auto"  # position ids after the merge: "original", "compact" or "auto"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("metric", self.metric, ("features", "keys"))
        check_number("prune_step", self.prune_step, 0, 1, above_low=True)
        check_number("temperature", self.temperature, 0, 1e6, above_low=True)
        if isinstance(check_whole_numbers("iterations", self.iterations, least=1), tuple):
            raise TypeError(f"iterations must be a whole number >= 1, got {self.iterations!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One merge at the encoder's output, in every tile and frame by itself, and decisions at decoder layers."""
        keys = EncoderSignal("keys", last_block(model)) if self.metric == "keys" else None
        merging = Stage(
            Place.ENCODER_OUTPUT,
            functools.partial(self.decide, keys=keys),
            signals=frozenset({"projected"} if keys is None else {"projected", keys}),
            positions=self.positions,
            mixes=True,
            scope="tile",
            budget=self.keep,
        )
        if self.prune_from is None:
            return [merging]
        first = check_layer("prune_from", self.prune_from, 0, model.decoder_layers - 2)
        shares = shares_left(first, self.prune_step, model.decoder_layers)
        decide = functools.partial(self.prune, shares=shares)
        positions: Positions = "compact" if self.positions == "compact" else "original"
        signals: frozenset[str | EncoderSignal] = frozenset({"queries_keys"})
        return [merging, Stage(Place.DECODER_LAYER, decide, tuple(shares), signals, positions)]

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

    def prune(self, tokens: VisualTokens, shares: Mapping[int, float]) -> Keep | None:
        """Keep a share of the tokens that arrived first, those that rank highest in the layer before."""
        merged = tokens.memory.setdefault("merged", tokens.arrived.sum(1))
        share = shares[tokens.layer]
        if share <= 0:
            return Keep(torch.zeros_like(tokens.valid))
        pairs = given(tokens.queries_keys, self.name, "queries_keys")
        asking = None if pairs.valid is None else pairs.valid[:, -pairs.queries.shape[2] :]
        ranks = importance(
            pairs.queries,
            pairs.keys,
            pairs.scale,
            valid=pairs.valid,
            asking=asking,
            temperature=self.temperature,
            iterations=self.iterations,
        )
        return Keep(top_k_mask(ranks.gather(1, pairs.at), left(merged, share), tokens.valid))


def shares_left(first: int, step: float, layers: int) -> dict[int, float]:
    """What share of the visual tokens enters each decoder layer behind `first`, up to the first one that gets none."""
    shares = {}
    for layer in range(first + 1, layers):
        shares[layer] = max(0.0, 1 - (layer - first) * step)
        if shares[layer] <= 0:
            break
    return shares


def left(merged: Tensor, share: float) -> Tensor:
    """How many tokens (rows,) that share of the merged ones (rows,) is, rounded down."""
    return (merged * share).long()


def importance(
    queries: Tensor,
    keys: Tensor,
    scale: float,
    *,
    valid: Tensor | None = None,
    asking: Tensor | None = None,
    temperature: float = 0.1,
    iterations: int = 5,
) -> Tensor:
    """Page rank of all slots in a causal layer's attention, root mean square over heads: (rows, slots), float32.

    Args:
        queries: (rows, heads, slots, head_dim).
        keys: (rows, kv_heads, earlier + slots, head_dim).
        scale: Factor on their products.
        valid: bool, (rows, earlier + slots), False for what nobody looks at; None for none.
        asking: bool, (rows, slots), False for what does not vote, such as padding; None for none.
        temperature: Of the softmax, on top of `scale`.
        iterations: How often votes are passed on.
    """
    votes = queries.new_full(queries.shape[:3], 1 / queries.shape[2], dtype=torch.float32)
    votes = pass_votes(
        votes, queries, keys, iterations, scale=scale / temperature, causal=True, valid=valid, asking=asking
    )
    return votes.square().mean(1).sqrt()


def last_block(model: ModelInfo) -> int:
    """The vision block whose keys say what is similar: the first one behind those that are used, or the last of them.

    Raises:
        ValueError: No block's keys are known.
    """
    if not model.attention_blocks:
        raise ValueError(f"aim cannot work on {model.family}: its encoder's keys are not known; use metric='features'.")
    behind = [block for block in model.attention_blocks if block >= model.encoder_layers]
    return min(behind) if behind else max(model.attention_blocks)
