"""Merges windows of the picture in which all tokens look alike into one token each.

Windows are ranked by the mean cosine between their tokens, and the most uniform ones become their mean, until the
budget is met, or as far as a threshold goes. By default that happens at the encoder's output: a budget may ask for
windows that are not uniform, and there the encoder has at least seen their patches one by one.

Inside the language model, if asked for (`thresholds`), tokens leave at four layers that get little attention from all
of the text together, and from each word of it; but never the key set, those that the encoder attended to most. What has
left by the last of these layers leaves the caches of the layers between them, too.

Paper: "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model" (MustDrop),
arXiv 2411.10803. Authors' code: github.com/liuting20/MustDrop.
Differs from the paper in: the paper merges by a threshold behind the first block of the encoder: `tau=0.8, block=0`.
In the caches newlines stay, and positions are those of the prefill (there, positions that do not fit the keys).
Every picture is merged by itself (there: as many windows in all of a
batch), tokens stay in the order of the picture, and at the encoder's output the merged token stands in the middle of
its window. Tokens at the edges that fill no window are left alone; grids that windows of 3 x 3 do not divide, or whose
budget they cannot meet, have windows of 2 x 2 or 4 x 4 where these fit. `keep` names a budget.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget, token_count
from vtprune.kernels import attention_scores
from vtprune.methods._cuts import check_cuts, cuts_at
from vtprune.methods._groups import average
from vtprune.methods._select import check_number, check_whole_numbers, given, index_mask, top_k_mask
from vtprune.methods.base import (
    CacheEntries,
    EncoderSignal,
    EncoderTokens,
    Group,
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

PAPER = (3, 7, 11, 15)
REDUCTIONS: tuple[Literal["sum", "max"], ...] = ("sum", "max")


@register("mustdrop")
@dataclasses.dataclass(frozen=True)
class MustDrop(Method):
    """Local spatial merging at the encoder's output, or behind one of its blocks, and a filter in the decoder.

    Of w x w tokens one stays, so that no budget is smaller than one token in w * w, and those at the edges.
    """

    kind = "merging"
    places = (Place.ENCODER_LAYER, Place.ENCODER_OUTPUT, Place.DECODER_LAYER, Place.CACHE)
    paper = "MustDrop, arXiv 2411.10803"
    cost = "N C; in the decoder, T N C per cut for T tokens of text"
    adaptive = True

    keep: Budget = 0.334  # ratio in (0, 1] or tokens per picture, met from below by whole windows; no effect with `tau`
    tau: float | None = None  # merge all windows with at least this mean cosine, in [-1, 1]; 0.8 in the paper
    window: int | None = None  # side of a window in tokens, >= 2; None: 3, the paper's, or 2 or 4 where 3 does not fit
    block: int | None = None  # vision block behind which it acts, 0 in the paper; None: at the encoder's output
    thresholds: tuple[float, float] | None = None  # share of the text's attention, and a word's, in [0, 1], below which
    # tokens leave in the decoder; None: they stay. (0.001, 0.001), (0.0012, 0.001), (0.011, 0.01) for 192, 128, 64
    layers: tuple[int, ...] | None = None  # first decoder layers with fewer tokens, >= 1; None: 3, 7, 11 and 15 of 32
    key_share: float = 0.08  # of the tokens behind the encoder, in [0, 1], that never leave in the decoder
    evict: bool = True  # whether what leaves in the decoder also leaves the caches of the layers between the filters;
    # False for use beside another method at the cache
    positions: Positions = "auto"  # "auto": "compact" on LLaVA as in the authors' code, "original" on other families

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.tau is not None:
            check_number("tau", self.tau, -1, 1)
        if self.window is not None and isinstance(check_whole_numbers("window", self.window, least=2), tuple):
            raise TypeError(f"window must be a whole number >= 2, got {self.window!r}.")
        layers, _ = check_cuts(self.layers, None, len(PAPER))
        object.__setattr__(self, "layers", layers)
        check_number("key_share", self.key_share, 0, 1)
        if self.thresholds is not None:
            if not isinstance(self.thresholds, Sequence) or len(self.thresholds) != 2:
                raise TypeError(f"thresholds must be two numbers, got {self.thresholds!r}.")
            for threshold in self.thresholds:
                check_number("thresholds", threshold, 0, 1)
            object.__setattr__(self, "thresholds", tuple(self.thresholds))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One merge of every tile and frame: behind a block of the encoder, or at its output; then the filter."""
        filters = self.thresholds is not None
        keys: EncoderSignal | None = None
        if filters and self.key_share:
            if not model.attention_blocks:
                raise ValueError(f"mustdrop finds no attention in the encoder of {model.family}: use key_share=0.")
            keys = EncoderSignal("attention", max(model.attention_blocks))
        signals = frozenset(() if keys is None else {keys})
        found: list[Stage] = []
        if self.block is not None:
            block = check_layer("block", self.block, 0, model.encoder_layers - 1)
            merge = Stage(
                Place.ENCODER_LAYER,
                self.merge_patches,
                (block,),
                positions=self.positions,
                after_block=True,
                ragged=self.tau is not None,
                needs_all=True,
            )
            found = [merge]
            if keys is not None:
                mark = functools.partial(self.mark, keys=keys)
                found.append(Stage(Place.ENCODER_OUTPUT, mark, signals=signals, positions=self.positions, scope="tile"))
        else:
            found = [
                Stage(
                    Place.ENCODER_OUTPUT,
                    functools.partial(self.decide, keys=keys),
                    signals=signals,
                    positions=self.positions,
                    mixes=True,
                    needs_all=True,
                    scope="tile",
                    budget=self.keep if self.tau is None else None,
                )
            ]
        if filters:
            cuts = tuple(cuts_at(self.layers, PAPER, model.decoder_layers))
            rows: frozenset[str | EncoderSignal] = frozenset({"text_rows"})
            found.append(Stage(Place.DECODER_LAYER, self.filter, cuts, rows, positions=self.positions))
            if self.evict:
                between = tuple(range(cuts[0] - 1, cuts[-1]))
                found.append(Stage(Place.CACHE, self.still_there, between, late=True, positions=self.positions))
        return found

    def merge_patches(self, tokens: EncoderTokens) -> Group:
        """Merge the windows of the residual stream whose patches are most alike; the class token stays alone."""
        first, side = tokens.protected, math.isqrt(tokens.patches)
        hidden = given(tokens.hidden, self.name, "hidden")[:, first:]
        if hidden.shape[1] != side * side:
            raise ValueError(
                f"{self.name} merges windows of whole square grids, got {hidden.shape[1]} of {tokens.patches} patches; "
                "use it before methods that remove tokens, or with block=None."
            )
        owner = self.owners(hidden, (1, side, side), token_count(self.keep, tokens.patches))
        stands = owner == torch.arange(owner.shape[1], device=owner.device)
        number = (stands.cumsum(1) - 1).gather(1, owner) + first
        groups = first + int(stands.sum(1).max())
        return Group(F.pad(number, (first, 0)), groups, weighted=False, ragged=self.tau is not None)

    def decide(self, pictures: Pictures, keys: EncoderSignal | None = None) -> Keep:
        """Merge the windows whose tokens are most alike, and mark the key set."""
        if pictures.grid is None:
            raise ValueError(f"{self.name} merges windows of whole grids; put it before methods that remove tokens.")
        owner = self.owners(pictures.encoded, pictures.grid, pictures.count(self.keep))
        itself = torch.arange(pictures.tokens, device=owner.device)
        mask, marked = owner == itself, None
        if keys is not None:
            seen = average(given(pictures.signals.get(keys), self.name, str(keys)).unsqueeze(-1), owner).squeeze(-1)
            # Of what is left behind the merge, a share that differs from picture to picture.
            counts = (mask.sum(1).double() * self.key_share).ceil().long()
            marked = top_k_mask(seen, counts, mask)
        return Keep(mask, functools.partial(average, owner=owner), owner, marked)

    def mark(self, pictures: Pictures, keys: EncoderSignal) -> Keep:
        """Mark the key set of tokens that were merged inside the encoder."""
        seen = given(pictures.signals.get(keys), self.name, str(keys))
        marked = index_mask(key_set(seen, self.key_share), pictures.tokens)
        return Keep(torch.ones_like(marked), marked=marked)

    def filter(self, tokens: VisualTokens) -> Keep:
        """Let go what the text, all of it and every word, attends to little; never the key set."""
        rows = given(tokens.text_rows, self.name, "text_rows")
        if self.thresholds is None:
            raise ValueError(f"{self.name} filters only with thresholds.")
        total, largest = (
            attention_scores(
                rows.queries,
                rows.keys,
                scale=rows.scale,
                row_mask=rows.sees >= 0,
                row_positions=rows.sees,
                key_valid=rows.valid,
                reduce_rows=reduce,
            ).gather(1, rows.at)
            for reduce in REDUCTIONS
        )
        kept = passes(total, largest, tokens.valid.to(total.device), self.thresholds)
        return Keep(kept if tokens.marked is None else (kept | tokens.marked.to(kept.device)) & tokens.valid)

    def still_there(self, entries: CacheEntries) -> Keep:
        """Keep in the cache what is there behind the last layer."""
        alive = given(entries.alive, self.name, "alive")
        return Keep(alive[:, None].expand_as(entries.candidate))

    def owners(self, x: Tensor, grid: tuple[int, int, int], count: int) -> Tensor:
        """For every token (pictures, tokens) the one that stands for it, if at most `count` shall be left."""
        side = self.window or fitting_side(grid, count if self.tau is None else x.shape[1])
        windows = windows_of(grid, side, x.device)
        scores = likeness(x, windows)
        if self.tau is None:
            chosen = top_k_mask(scores, math.ceil((x.shape[1] - count) / (side**2 - 1)))
        else:
            chosen = scores >= self.tau
        return window_owner(chosen, windows, x.shape[1])


def fitting_side(grid: tuple[int, int, int], count: int) -> int:
    """The first of 3, 2 and 4 that divides rows and columns and can leave as few as `count` tokens.

    If none can, the largest that divides; if none does, 3.
    """
    frames, rows, columns = grid
    dividing = [side for side in (3, 2, 4) if rows % side == 0 and columns % side == 0]
    enough = [side for side in dividing if frames * (rows // side) * (columns // side) <= count]
    return enough[0] if enough else max(dividing, default=3)


def windows_of(grid: tuple[int, int, int], side: int, device: torch.device | None = None) -> Tensor:
    """(windows, side * side): the tokens of every whole window of a grid, windows and tokens in raster order."""
    frames, rows, columns = grid
    tokens = torch.arange(frames * rows * columns, device=device).view(frames, rows, columns)
    whole = tokens[:, : rows // side * side, : columns // side * side]
    parts = whole.reshape(frames, rows // side, side, columns // side, side).transpose(2, 3)
    return parts.reshape(-1, side * side)


def likeness(x: Tensor, windows: Tensor) -> Tensor:
    """Mean cosine between different tokens of a window, (pictures, windows), float32; x is (pictures, tokens, n)."""
    unit = F.normalize(x.detach().float(), dim=-1, eps=1e-8)[:, windows]
    # The sum over all pairs is the squared length of the sum; less that of each token with itself.
    pairs = unit.sum(2).square().sum(-1) - unit.square().sum((2, 3))
    size = windows.shape[1]
    return pairs / (size * (size - 1))


def window_owner(chosen: Tensor, windows: Tensor, tokens: int) -> Tensor:
    """For every token (pictures, tokens) the middle one of its window, if that is chosen (pictures, windows)."""
    owner = torch.arange(tokens, device=windows.device).repeat(len(chosen), 1)
    count, size = windows.shape
    middle = windows[:, (size - 1) // 2, None] if size % 2 else windows[:, size // 2 + round(size**0.5) // 2, None]
    new = torch.where(chosen[..., None], middle, windows)
    return owner.scatter(1, windows.reshape(1, count * size).expand(len(chosen), -1), new.flatten(1))


def passes(total: Tensor, largest: Tensor, valid: Tensor, thresholds: tuple[float, float]) -> Tensor:
    """Visual tokens that pass the filter, bool (rows, tokens).

    Args:
        total: (rows, tokens), attention of all text together, mean over heads.
        largest: (rows, tokens), the largest that one word gives, mean over heads.
        valid: bool, (rows, tokens), False on padding.
        thresholds: What tokens must reach of either: a share of the row's total, or so much from one word.
    """
    share, word = thresholds
    everything = total.masked_fill(~valid, 0).sum(1, keepdim=True)
    return valid & ~((total < share * everything) & (largest < word))


def key_set(attention: Tensor, share: float = 0.08) -> Tensor:
    """Indices of what no later stage may drop, (pictures, n): the share with most attention, highest first.

    Args:
        attention: (pictures, tokens), of the encoder's last block.
        share: In (0, 1]; rounded up.
    """
    count = math.ceil(share * attention.shape[1])
    return attention.detach().float().argsort(dim=1, descending=True, stable=True)[:, :count]
