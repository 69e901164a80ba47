"""Keeps visual tokens that the visually relevant words of the prompt attend to, and recycles some of the others.

Once, the embeddings of pictures and text say which text tokens are about the picture: the raters. At a few decoder
layers, the visual tokens that the raters attended to most stay. Of the others, the better part is clustered, and each
cluster's mean stays on the slot of its centre.

Paper: "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
arXiv 2410.04417; version 2 is SparseVLM+ of the same code. Authors' code: github.com/Gumpest/SparseVLMs.
Differs from the paper in: a merged token takes the slot and the position of its cluster's centre (there: slots behind
all kept ones); budgets are shares, at layers of the same relative depth of any model; where the budget allows all
tokens, all stay (there: one leaves and is recycled); densities have no random noise, of equal ones the first token is
the centre; scores are float32, and every row of a batch has its own raters and counts; a prompt whose words are all
equally relevant has all of them as raters (there: none, and nothing but NaN); where no text follows the pictures, the
first tokens stay.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import Budget, check_keep, token_count
from vtprune.kernels import attention_scores, compact_index, gather_rows
from vtprune.methods._cuts import arrived_first, check_cuts, counts_by_power, counts_of, cuts_at
from vtprune.methods._density import density_clusters
from vtprune.methods._groups import average
from vtprune.methods._select import check_choice, check_number, check_whole_numbers, given, top_k_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Place, Positions, Stage, TextRows, VisualTokens
from vtprune.methods.registry import register

PAPER = (3, 7, 16)
LIST = (300, 200, 110)  # what the paper's preset "192" keeps of 576


@register("sparsevlm")
@dataclasses.dataclass(frozen=True)
class SparseVLM(Method):
    """Cuts at three decoder layers by the attention of raters.

    The cuts before the last one leave powers of `keep`, such that the default is the authors' preset "192": 300, 200
    and 110 of 576, which is 192 tokens on average over 32 layers, and a few recycled ones on top. Their other presets
    are `shares` of (303, 110, 36), (238, 48, 26) and (66, 30, 17) tokens; for version 2 (300, 200, 118),
    (238, 108, 60), (246, 54, 28) and (66, 34, 20). The first release was rank-adaptive: `rank_scale` of 13.5, 9 (with
    `rank_bias` 6) or 0.8, and a fourth cut, layers=(3, 7, 16, 20).
    """

    kind = "pruning"
    places = (Place.DECODER_LAYER,)
    paper = "SparseVLM, ICML 2025, arXiv 2410.04417"
    cost = "T N C for the raters; per cut less than T N C for their attention, and 0.09 N^2 C to recycle"
    adaptive = True

    keep: Budget = 0.191  # ratio in (0, 1] or tokens per picture that the last cut keeps, without recycled ones
    version: Literal[1, 2] = 1  # 1: recycles; 2: corrects the rotary bias, asks the best heads only, does not recycle
    layers: tuple[int, ...] | None = None  # first layers with fewer tokens, ascending, >= 1; None: as in the paper
    shares: tuple[Budget, ...] | None = None  # what each cut keeps of each picture; None: follows from `keep`
    rank_scale: float | None = None  # if given, cuts keep rank_scale * rank + rank_bias tokens instead, > 0
    rank_bias: float = 0.0  # >= 0; the rank is that of the raters' attention
    recycle: float = 0.3  # share of the tokens that leave that is recycled, in [0, 1]; version 1 only
    merge: int = 10  # so many recycled tokens become about one, >= 1; version 1 only
    heads: Budget = 0.4375  # heads that are asked, version 2 only; 14 of 32 in the authors' code
    positions: Positions = "auto"  # "auto": as in the authors' code: version 1 "compact" on LLaVA, else "original"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("version", self.version, (1, 2))
        layers, shares = check_cuts(self.layers, self.shares, len(PAPER))
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "shares", shares)
        if self.rank_scale is not None:
            check_number("rank_scale", self.rank_scale, 0, 1e6, above_low=True)
        check_number("rank_bias", self.rank_bias, 0, 1e6)
        check_number("recycle", self.recycle, 0, 1)
        if isinstance(check_whole_numbers("merge", self.merge, least=1), tuple):
            raise TypeError(f"merge must be a whole number >= 1, got {self.merge!r}.")
        object.__setattr__(self, "heads", check_keep(self.heads, "heads"))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """A look at the embeddings, which chooses raters, and one decision at the input of several decoder layers."""
        cuts = cuts_at(self.layers, PAPER, model.decoder_layers)
        rule: Positions = "original" if self.positions == "auto" and self.version == 2 else self.positions
        recycles = self.version == 1 and self.recycle > 0
        signals = frozenset({"text_rows", "hidden"} if recycles else {"text_rows"})
        return [
            Stage(Place.DECODER_LAYER, self.rate, (0,), frozenset({"hidden", "text"}), positions=rule),
            Stage(
                Place.DECODER_LAYER,
                functools.partial(self.decide, cuts=cuts),
                tuple(cuts),
                signals,
                positions=rule,
                mixes=recycles,
            ),
        ]

    def rate(self, tokens: VisualTokens) -> None:
        """Remember the raters."""
        hidden, text = given(tokens.hidden, self.name, "hidden"), given(tokens.text, self.name, "text")
        there = given(tokens.text_valid, self.name, "text")
        if text.shape[1]:
            tokens.memory["raters"] = raters(relevance(hidden, text, tokens.valid, there), there)

    def decide(self, tokens: VisualTokens, cuts: Mapping[int, int]) -> Keep:
        """Keep what raters attend to, over all pictures of a row together, and recycle some of what they do not."""
        relation = self.relation(tokens)
        kept = top_k_mask(relation, self.counts(tokens, cuts[tokens.layer]), tokens.valid)
        if self.version == 2 or not self.recycle:
            return Keep(kept)
        pool = recycled(relation, tokens.valid & ~kept, self.recycle)
        hidden = given(tokens.hidden, self.name, "hidden")
        owner = clustered(hidden, pool, clusters_of(pool, self.merge), math.floor(self.recycle * hidden.shape[1]) + 1)
        centres = pool & (owner == torch.arange(owner.shape[1], device=owner.device))
        return Keep(kept | centres, functools.partial(average, owner=owner), owner)

    def relation(self, tokens: VisualTokens) -> Tensor:
        """Attention of the raters, (rows, tokens); 0 where the prompt ends with its pictures and nobody rates."""
        rows = given(tokens.text_rows, self.name, "text_rows")
        if "raters" not in tokens.memory:
            return torch.zeros(tokens.valid.shape, device=rows.at.device)
        if self.version == 1:
            return attended(rows, tokens.memory["raters"])
        return attended_by_best_heads(rows, tokens.memory["raters"], self.heads, tokens.valid)

    def counts(self, tokens: VisualTokens, cut: int) -> Tensor:
        """How many tokens of every row a cut keeps, (rows,)."""
        if self.rank_scale is not None:
            ranks, asking = torch.zeros_like(tokens.valid.sum(1)), tokens.memory.get("raters")
            if asking is not None:
                values = singular_values(given(tokens.text_rows, self.name, "text_rows"), asking, tokens.valid)
                ranks = rank(values, asking.sum(1), tokens.valid.sum(1))
            return rank_counts(ranks, tokens.valid.sum(1), self.rank_scale, self.rank_bias)
        arrived = arrived_first(tokens)
        if self.shares is not None:
            return counts_of(self.shares[cut], arrived)
        powers = [math.log(n / 576) / math.log(LIST[-1] / 576) for n in LIST]
        if self.layers is not None:
            powers = [(i + 1) / len(self.layers) for i in range(len(self.layers))]
        return counts_by_power(self.keep, arrived, powers[cut])


def relevance(visual: Tensor, text: Tensor, visual_valid: Tensor, text_valid: Tensor) -> Tensor:
    """How much of its attention a visual token would give each text token on average, by plain products: (rows, n).

    Args:
        visual: (rows, tokens, width), embeddings.
        text: (rows, n, width), embeddings.
        visual_valid: bool, (rows, tokens), False on padding.
        text_valid: bool, (rows, n), False on padding.
    """
    queries, keys = visual.detach().float().unsqueeze(1), text.detach().float().unsqueeze(1)
    return attention_scores(queries, keys, scale=1.0, row_mask=visual_valid, key_valid=text_valid)


def raters(relevance: Tensor, valid: Tensor) -> Tensor:
    """Text tokens of more than mean relevance, bool (rows, n); all of them where none is."""
    mean = relevance.masked_fill(~valid, 0).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp_min(1)
    chosen = valid & (relevance > mean)
    return torch.where(chosen.any(1, keepdim=True), chosen, valid)


def _probabilities(rows: TextRows, asking: Tensor, heads: Literal["mean"] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of the raters, (rows, [heads,] raters, tokens); which text they are, and which are no padding."""
    asking = asking.to(rows.sees.device)
    index, valid = compact_index(asking, width=max(1, int(asking.sum(1).max())), padded=True)
    there = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    queries = rows.queries.gather(
        2, index[:, None, :, None].expand(-1, rows.queries.shape[1], -1, rows.queries.shape[3])
    )
    found = attention_scores(
        queries,
        rows.keys,
        scale=rows.scale,
        row_mask=there,
        row_positions=rows.sees.gather(1, index).masked_fill(~there, -1),
        key_valid=rows.valid,
        reduce_rows=None,
        reduce_heads=heads,
    )
    at = rows.at if heads else rows.at.unsqueeze(1)
    return found.gather(-1, at.unsqueeze(-2).expand(*found.shape[:-1], -1)), index, there


def attended(rows: TextRows, asking: Tensor) -> Tensor:
    """Attention of the raters to every visual token, mean over heads and raters: (rows, tokens)."""
    scores = attention_scores(
        rows.queries,
        rows.keys,
        scale=rows.scale,
        row_mask=asking.to(rows.sees.device) & (rows.sees >= 0),
        row_positions=rows.sees,
        key_valid=rows.valid,
    )
    return scores.gather(1, rows.at)


def rotary_bias(query: tuple[Tensor, Tensor], token: tuple[Tensor, Tensor]) -> Tensor:
    """Logits that rotary position embedding alone gives: those of vectors of ones, (rows, queries, tokens).

    Args:
        query: Cosines and sines of the queries, (rows, n, head_dim).
        token: Those of the visual tokens.
    """
    sign = torch.ones(query[0].shape[-1], device=query[0].device)
    sign[: len(sign) // 2] = -1
    asking, asked = (cos.float() + sign * sin.float() for cos, sin in (query, token))
    return asking @ asked.transpose(1, 2) / math.sqrt(len(sign))


def attended_by_best_heads(rows: TextRows, asking: Tensor, heads: Budget, valid: Tensor) -> Tensor:
    """Attention of the raters over what their positions alone explain, mean over raters and the best heads.

    Args:
        rows: Queries of text and all keys.
        asking: bool, (rows, n), the raters.
        heads: How many heads, those whose raters see most of the pictures.
        valid: bool, (rows, tokens), False on padding.

    Returns:
        (rows, tokens).
    """
    found, index, there = _probabilities(rows, asking, None)
    rotation = tuple(gather_rows(x, index.to(x.device)) for x in rows.query_rotation)
    found = found / rotary_bias((rotation[0], rotation[1]), rows.token_rotation).to(found.device).unsqueeze(1)
    found = found.masked_fill(~(there.unsqueeze(2) & valid.to(there.device).unsqueeze(1)).unsqueeze(1), 0).sum(2)
    best = top_k_mask(found.sum(2), token_count(heads, found.shape[1]))
    mean = (found * best.unsqueeze(2)).sum(1) / best.sum(1, keepdim=True)
    return mean / there.sum(1, keepdim=True).clamp_min(1)


def singular_values(rows: TextRows, asking: Tensor, valid: Tensor) -> Tensor:
    """Of the raters' attention to the visual tokens, mean over heads: (rows, raters or tokens), descending."""
    found, _, there = _probabilities(rows, asking, "mean")
    return torch.linalg.svdvals(found.masked_fill(~(there.unsqueeze(2) & valid.to(there.device).unsqueeze(1)), 0))


def rank(values: Tensor, raters: Tensor, tokens: Tensor) -> Tensor:
    """How many singular values (rows, n) are no rounding error of a matrix of so many rows and columns: (rows,)."""
    error = torch.maximum(raters, tokens).to(values.device).float() * torch.finfo(torch.float32).eps
    return (values > values.amax(1, keepdim=True) * error.unsqueeze(1)).sum(1)


def rank_counts(ranks: Tensor, tokens: Tensor, scale: float, bias: float) -> Tensor:
    """How many of so many tokens (rows,) the first release keeps; all if their rank is their number."""
    wanted = (ranks.to(tokens.device).double() * scale + bias).long().clamp_min(1)
    return torch.where(tokens == ranks.to(tokens.device), tokens, torch.minimum(wanted, tokens - 1))


def recycled(relation: Tensor, dropped: Tensor, share: float) -> Tensor:
    """The most attended of the dropped tokens, bool (rows, tokens): a share of them, rounded down, and one more."""
    count = dropped.sum(1)
    return top_k_mask(relation, ((count.double() * share).long() + 1).minimum(count), dropped)


def clusters_of(pool: Tensor, merge: int) -> Tensor:
    """How many clusters the tokens of a pool (rows, tokens) form, (rows,)."""
    count = pool.sum(1)
    return (count // merge + 1).minimum(count.clamp_min(1)).long()


def clustered(x: Tensor, pool: Tensor, counts: Tensor, width: int) -> Tensor:
    """For every token (rows, tokens) the centre of its cluster; itself outside of the pool.

    Args:
        x: (rows, tokens, width).
        pool: bool, (rows, tokens), what is clustered.
        counts: (rows,), number of clusters, and of the neighbours that say how dense it is around a token.
        width: No row has more tokens in the pool.
    """
    return density_clusters(x, pool, counts, width, min(width, x.shape[1]))
