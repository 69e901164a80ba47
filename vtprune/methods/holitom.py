"""Averages what stands still over the stretches of a video in which it does, and prunes and clusters what is left.

A video is cut into segments; what stands still in one is averaged over its frames and clustered by density, and of what
moves those tokens stay that the encoder attends to most. Inside the language model, half of them may be merged again.

Paper: "HoliTom: Holistic Token Merging for Fast Video Large Language Models", NeurIPS 2025, arXiv 2505.21334.
Authors' code: github.com/cokeshao/HoliTom.
Differs from the paper in: where densities tie, as they all do around a single centre, the lower index wins (there:
random noise); every video of a batch has its own share (there: the second one goes on with the first one's); a video
never loses all of its tokens, and a budget of everything keeps everything; pictures, and videos of one frame, are left
as they are before the language model. Inside it, all pictures and videos of a row are merged together (there: the first
one).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtprune.budget import Budget, check_keep
from vtprune.kernels import merge_by_owner
from vtprune.methods._density import density_clusters
from vtprune.methods._frames import frames_of
from vtprune.methods._halving import halving_weights, most_similar
from vtprune.methods._segments import Plan, alike_next, plan_video, still_counts, still_since
from vtprune.methods._select import check_number, check_whole_numbers, given, top_k_mask
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


@register("holitom")
@dataclasses.dataclass(frozen=True)
class HoliTom(Method):
    """Segments of a video by dynamic programming, at the encoder's output; merging at a decoder layer, if asked for.

    Tokens that stand still from the first to the last frame of a segment are averaged over it and clustered; of the
    others those stay to which the encoder attends most. `keep` is the paper's retain ratio. What averaging over time
    saves is given back to what is left; counts are rounded frame by frame and segment by segment.

    The paper's presets are keep=0.1, 0.15, 0.2 and 0.25; with inner_layer=18 in a decoder of 28 layers, its "M".
    """

    kind = "merging"
    places = (Place.ENCODER_OUTPUT,)
    paper = "HoliTom, NeurIPS 2025, arXiv 2505.21334"
    cost = "N C for likeness over time, N^2 (C + D) / F within frames; K^2 C / 2 to merge in the decoder"
    needs_video = True
    adaptive = True

    keep: Budget = 0.1  # ratio in (0, 1] or tokens per video
    tau: float | None = None  # cosine above which a token stands still, in [-1, 1]; None: 0.65 up to keep=0.1, else 0.8
    beta: float = 0.6  # weight of a centre against the mean of what it stands for, in [0, 1]
    contextual: float = 0.0  # share of a frame's moving tokens that are centres of the rest, in [0, 1]; the paper's D
    neighbours: int = 7  # nearest neighbours that make up density, >= 1
    window: int = 1024  # longest segment, frames >= 1
    inner_layer: int | None = None  # decoder layer at whose input tokens are merged again, pictures' too; None: nowhere
    inner_keep: Budget = 0.5  # what stays then: ratio in (0, 1] or tokens per picture or video
    positions: Positions = "auto"  # position ids after the removal: "original", "compact" or "auto"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.tau is not None:
            check_number("tau", self.tau, -1, 1)
        check_number("beta", self.beta, 0, 1)
        object.__setattr__(self, "inner_keep", check_keep(self.inner_keep, "inner_keep"))
        check_number("contextual", self.contextual, 0, 1)
        for name in ("neighbours", "window"):
            if isinstance(check_whole_numbers(name, getattr(self, name), least=1), tuple):
                raise TypeError(f"{name} must be a whole number >= 1, got {getattr(self, name)!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One decision per video at the encoder's output, and one per row at the inner layer."""
        received = EncoderSignal("received", model.scored_block)
        decide = functools.partial(self.decide, asked=received)
        signals: frozenset[str | EncoderSignal] = frozenset({"projected", received})
        outer = Stage(
            Place.ENCODER_OUTPUT, decide, signals=signals, positions=self.positions, needs_all=True, mixes=True
        )
        if self.inner_layer is None:
            return [outer]
        layer = check_layer("inner_layer", self.inner_layer, 1, model.decoder_layers - 1)
        asked: frozenset[str | EncoderSignal] = frozenset({"last_query", "hidden"})
        positions: Positions = "compact" if self.positions == "compact" else "original"
        return [outer, Stage(Place.DECODER_LAYER, self.merge, (layer,), asked, positions, mixes=True)]

    def decide(self, pictures: Pictures, asked: EncoderSignal) -> Keep | None:
        """Merge what stands still, prune what moves."""
        projected = given(pictures.projected, self.name, "projected")
        received = given(pictures.signals.get(asked), self.name, str(asked))
        frames, count = frames_of(pictures, self.name), pictures.count(self.keep)
        if frames == 1 or count >= pictures.tokens:
            return None
        share = self.keep if isinstance(self.keep, float) else count / pictures.tokens
        found = self.reduce(projected.unflatten(1, (frames, -1)), received.unflatten(1, (frames, -1)), share)
        mix = functools.partial(blend, still=found.still_owner, owner=found.owner, beta=self.beta)
        return Keep(found.kept.flatten(1), mix, found.owner.gather(1, found.still_owner))

    def merge(self, tokens: VisualTokens) -> Keep:
        """Keep what the last prompt token attends to; the others become part of what is most like them."""
        attention = given(tokens.attention, self.name, "last_query")
        hidden = given(tokens.hidden, self.name, "hidden")
        mask = top_k_mask(attention, tokens.counts(self.inner_keep), tokens.valid)
        owner = most_similar(hidden, mask, tokens.valid)
        weights = halving_weights(owner)
        return Keep(mask, lambda x: merge_by_owner(x, owner, owner.shape[1], weights)[0], owner)

    def reduce(self, features: Tensor, received: Tensor, share: float) -> Reduced:
        """What becomes of the tokens of videos, of which about a share stays.

        Args:
            features: (videos, frames, tokens, channels).
            received: Attention received, (videos, frames, tokens).
            share: In (0, 1].
        """
        device, (videos, frames, tokens) = features.device, received.shape
        since = still_since(alike_next(features), self.threshold(share))
        counts = still_counts(since).cpu().numpy()
        plans = [plan_video(one, tokens, share, self.contextual, self.window) for one in counts]
        tables = np.stack([plan.table for plan in plans])
        first, last, dominant, contextual, centres, _ = torch.from_numpy(tables).to(device).unbind(1)
        whole = since.gather(1, last.unsqueeze(-1).expand_as(since)) <= first.unsqueeze(-1)
        still = whole & (last > first).unsqueeze(-1)
        place = torch.arange(frames * tokens, device=device).view(frames, tokens)
        still_owner = torch.where(still, first.unsqueeze(-1) * tokens + place[0], place).flatten(1)
        averaged, _ = merge_by_owner(features.detach().flatten(1, 2).float(), still_owner, frames * tokens)
        # From here on frame by frame, of all videos.
        averaged, moving = averaged.view(videos * frames, tokens, -1), ~still.flatten(0, 1)
        top = top_k_mask(received.flatten(0, 1), dominant.flatten(), moving)
        owner = place[0].repeat(videos * frames, 1)
        kept = top
        for candidates, wanted, numbers, most in (
            (~moving, centres, tables[:, 4], tokens - tables[:, 5]),
            (moving & ~top, contextual, tables[:, 3], tables[:, 5] - tables[:, 2]),
        ):
            rows = numbers.ravel().nonzero()[0]
            if not len(rows):
                continue
            at = torch.from_numpy(rows).to(device)
            here, width = candidates[at], int(most.ravel()[rows].max())
            mine = density_clusters(averaged[at], here, wanted.flatten()[at], self.neighbours, width)
            owner[at] = torch.where(here, mine, owner[at])
            kept = kept.index_put((at,), kept[at] | (here & (mine == place[0])))
        owner = owner.view(videos, frames, tokens) + place[:, :1]
        return Reduced(plans, still, top.view_as(still), kept.view_as(still), still_owner, owner.flatten(1))

    def threshold(self, share: float) -> float:
        """`tau`, or the paper's for this share of tokens."""
        return self.tau if self.tau is not None else 0.65 if share <= 0.1 else 0.8


class Reduced(NamedTuple):
    """What became of the tokens of videos.

    Attributes:
        plans: Segments and counts of each video.
        still: bool, (videos, frames, tokens), those that stand still in their segment.
        dominant: bool, (videos, frames, tokens), those that stay as they are.
        kept: bool, (videos, frames, tokens), all that stay; what stood still stays in the first frame of its segment.
        still_owner: (videos, frames * tokens), the token at the same place in the first frame of its segment, for what
            stands still; itself for the others.
        owner: (videos, frames * tokens), the centre that stands for each token after that; itself if none does.
    """

    plans: list[Plan]
    still: Tensor
    dominant: Tensor
    kept: Tensor
    still_owner: Tensor
    owner: Tensor


def blend(x: Tensor, still: Tensor, owner: Tensor, beta: float) -> Tensor:
    """New features: means over time, then beta * centre + (1 - beta) * mean of what it stands for.

    Args:
        x: (videos, tokens, channels).
        still: (videos, tokens), with whom each token is averaged over time.
        owner: (videos, tokens), the centre of each token after that.
        beta: In [0, 1].
    """
    tokens = x.shape[1]
    averaged, _ = merge_by_owner(x.float(), still, tokens)
    away = owner != torch.arange(tokens, device=x.device)
    mean, members = merge_by_owner(averaged, torch.where(away, owner, tokens), tokens + 1)
    with_others = beta * averaged + (1 - beta) * mean[:, :tokens]
    return torch.where(members[:, :tokens, None] > 0, with_others, averaged).to(x.dtype)


def official_order(found: Reduced, columns: int | None = None) -> Tensor:
    """What stays of the first video, in the order of the authors' code.

    Args:
        found: What became of the tokens.
        columns: None: in every segment what stood still, then frame by frame those that stay as they are, then
            centres. Or, for their LLaVA-Video variant, the tokens per row: raster order, with a newline behind every
            row that has a token left.

    Returns:
        (kept,) int64, indices into frames * tokens; with newlines into (frames, rows, columns + 1), flattened.
    """
    kept, still, dominant = found.kept[0], found.still[0], found.dominant[0]
    if columns is None:
        frames, tokens = kept.shape
        place = torch.arange(frames * tokens, device=kept.device).view(frames, tokens)
        first = torch.from_numpy(found.plans[0].table[0]).to(kept.device)[:, None]
        rank = ((2 * first + ~still) * frames + place[:, :1] // tokens) * 2 + ~dominant
        order = rank.flatten().argsort(stable=True)
        return order[kept.flatten()[order]]
    rows = kept.unflatten(1, (-1, columns))
    return torch.cat((rows, rows.any(-1, keepdim=True)), -1).flatten().nonzero()[:, 0]
