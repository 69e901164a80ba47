"""Drops the patches that matter least in every block of the vision encoder, and merges the next ones into the others.

What class attention ranks lowest leaves; what it ranks next joins the most similar of those that stay, as many in each
block as a table of rates says.

Paper: "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV 2023, arXiv 2305.17997.
Authors' code: github.com/OpenGVLab/DiffRate.
Differs from the paper in: rates are given (`vtprune.rates` has what they are learned with, but no trainer); `keep`
takes the shape of the authors' table for MAE-L (42.3 GFLOPs) and stretches it to the number of patches wanted, as no
table exists for encoders of language models; the size of a group never falls to zero or below; encoders without a class
token (SigLIP) use the attention that a patch receives on average from all.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget, check_keep, token_count
from vtprune.kernels._cosine import live_unit_rows
from vtprune.kernels._shared import first_argmax
from vtprune.methods._importance import received
from vtprune.methods._select import given
from vtprune.methods.base import EncoderTokens, Group, Method, ModelInfo, Place, Positions, Stage
from vtprune.methods.registry import register

# The authors' table: tokens of 197 that are left behind pruning and behind merging, in each block.
PRUNED = (197, 197, 197, 195, 194, 193, 191, 187, 182, 180, 173, 149, 142, 134, 125, 121, 111, 106, 91, 87, 77, 39, 38)
MERGED = (197, 197, 196, 194, 193, 192, 187, 183, 181, 173, 154, 146, 137, 127, 123, 114, 105, 98, 87, 75, 43, 45, 32)
LEAST_SIZE = 1e-3


@register("diffrate")
@dataclasses.dataclass(frozen=True)
class DiffRate(Method):
    """Pruning and merging by class attention between attention and MLP, with a rate of each per block.

    `pruned` and `merged` say what is left behind each of both steps in every block, as ratios or numbers of patches,
    without the class token that the authors' tables count; what does not shorten a block's input does nothing.
    """

    kind = "pruning"
    places = (Place.ENCODER_LAYER,)
    paper = "DiffRate, ICCV 2023, arXiv 2305.17997"
    cost = "n D + s m D per block, s merged into m that stay; n^2 D more without [CLS]"

    keep: Budget = 0.25  # ratio in (0, 1] or patches per picture after the last block; without effect with `merged`
    pruned: tuple[Budget, ...] | None = None  # patches left behind pruning, one for each block; needs `merged`
    merged: tuple[Budget, ...] | None = None  # patches left behind merging, one for each block
    prune: bool = True  # False: merge only
    positions: Positions = "auto"  # position ids in the language model: "compact", "original" or "auto" (see `Stage`)

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        for name in ("pruned", "merged"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(check_keep(value) for value in values))
        if self.pruned is not None and (self.merged is None or len(self.merged) != len(self.pruned)):
            raise ValueError(f"pruned={self.pruned!r} needs as many values in merged, got merged={self.merged!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One step in every encoder block."""
        layers = model.encoder_layers
        if self.merged is not None and len(self.merged) != layers:
            raise ValueError(f"merged must have one value for each of {layers} encoder blocks, got {len(self.merged)}.")
        decide = functools.partial(self.decide, layers=layers)
        prunes = self.prune and (self.merged is None or self.pruned is not None)
        return [
            Stage(
                Place.ENCODER_LAYER,
                decide,
                tuple(range(layers)),
                positions=self.positions,
                proportional=True,
                prunes=prunes,
            )
        ]

    def decide(self, tokens: EncoderTokens, layers: int) -> Group | None:
        """Drop and merge down to this block's two numbers."""
        layer, patches = tokens.layer, tokens.patches
        there = tokens.sizes.shape[1] - tokens.protected
        if self.merged is None:
            pruned, merged = table_for(patches, token_count(self.keep, patches), layers)[layer]
        else:
            merged = token_count(self.merged[layer], patches)
            pruned = patches if self.pruned is None else token_count(self.pruned[layer], patches)
        pruned = min(pruned, there) if self.prune else there
        merged = min(merged, pruned)
        if merged >= there:
            return None
        importance = received(tokens, self.name)[:, tokens.protected :]
        hidden = given(tokens.hidden, self.name, "hidden")
        return compress(hidden, importance, tokens.sizes, pruned, merged, tokens.protected)


def compress(hidden: Tensor, importance: Tensor, sizes: Tensor, pruned: int, merged: int, protected: int = 0) -> Group:
    """Keep the `pruned` most important patches, and merge those behind the first `merged` into their nearest.

    Groups come by falling importance. What a patch adds to the size of its group is discounted by its similarity.

    Args:
        hidden: (pictures, tokens, channels), what similarity is measured on.
        importance: (pictures, patches); of equal ones the lower index comes first.
        sizes: (pictures, tokens).
        pruned: Patches that stay or merge.
        merged: Patches that are left; at least 1.
        protected: Tokens before the patches that stay alone.
    """
    order = importance.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    targets, sources = order[:, :merged] + protected, order[:, merged:pruned] + protected
    unit, _ = live_unit_rows(hidden, None)
    pick = lambda index: unit.gather(1, index[..., None].expand(-1, -1, unit.shape[2]))  # noqa: E731
    likeness, nearest = first_argmax(pick(sources) @ pick(targets).transpose(1, 2))
    alone = torch.arange(protected, device=order.device).expand(len(order), -1)
    owner = torch.cat((alone, rank.clamp_max(merged - 1) + protected), 1).scatter(1, sources, nearest + protected)
    keep = torch.cat((torch.ones_like(alone, dtype=torch.bool), rank < pruned), 1)
    new_sizes = torch.cat((sizes[:, :protected], sizes.gather(1, targets)), 1)
    new_sizes = new_sizes.scatter_add(1, nearest + protected, sizes.gather(1, sources) * likeness)
    drops = pruned < order.shape[1]
    return Group(
        owner,
        merged + protected,
        weighted=False,
        keep=keep if drops else None,
        sizes=new_sizes.clamp_min(LEAST_SIZE),
    )


@functools.lru_cache(maxsize=256)
def table_for(patches: int, left: int, layers: int) -> tuple[tuple[int, int], ...]:
    """Patches left behind pruning and merging in each of `layers` blocks, ending with `left` of `patches`."""
    end = (MERGED[-1] - 1) / 196
    found, least = [], patches
    for layer in range(layers):
        at = (len(MERGED) - 1) * (layer / (layers - 1) if layers > 1 else 1.0)
        low = min(int(at), len(MERGED) - 2)
        row = []
        for table in (PRUNED, MERGED):
            share = (table[low] + (table[low + 1] - table[low]) * (at - low) - 1) / 196
            count = math.ceil(left + (patches - left) * (share - end) / (1 - end) - 1e-6)
            least = max(min(least, count), left)
            row.append(least)
        found.append((row[0], row[1]))
    return tuple(found)
