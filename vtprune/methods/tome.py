"""Merges the most similar visual tokens inside every block of the vision encoder.

Tokens at even places join the most similar of those at odd places, the best pairs first; features are means by size,
and attention counts a merged token as often as the patches that it stands for.

Paper: "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461. Authors' code:
github.com/facebookresearch/ToMe (CC-BY-NC; not used here).
Differs from the paper in: `keep` names the patches left at the end, and the merges per layer follow from it; matching
runs in float32, and equal similarities are decided by the lower index.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from torch import Tensor

from vtprune.budget import Budget, token_count
from vtprune.kernels import bipartite_matching, owner_map
from vtprune.methods._select import check_number, check_whole_numbers
from vtprune.methods.base import EncoderTokens, Group, Method, ModelInfo, Place, Positions, Stage
from vtprune.methods.registry import register


@register("tome")
@dataclasses.dataclass(frozen=True)
class ToMe(Method):
    """Bipartite merging between attention and MLP of every encoder block; the class token stays alone."""

    kind = "merging"
    places = (Place.ENCODER_LAYER,)
    paper = "ToMe, ICLR 2023, arXiv 2210.09461"
    cost = "n^2 d / 4 per encoder block"

    keep: Budget = 0.25  # ratio in (0, 1] or patches per picture after the last block; without effect once `r` is given
    r: int | tuple[int, ...] | None = None  # merges per block as in the paper, a number for all or one for each
    inflection: float = 0.0  # slope of the schedule of a single `r`, in [-1, 1]; -1 starts with 2 r and ends with 0
    proportional: bool = True  # weigh attention by token size; False for encoders trained without supervision (MAE)
    weighted: bool = True  # weigh tokens by size in averages; False: every token counts once
    positions: Positions = "auto"  # position ids in the language model: "compact", "original" or "auto" (see `Stage`)

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        object.__setattr__(self, "r", check_merges(self.r, self.inflection))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One merge in every encoder block."""
        if isinstance(self.r, tuple) and len(self.r) > model.encoder_layers:
            raise ValueError(f"r must name at most {model.encoder_layers} blocks of this model, got {len(self.r)}.")
        if model.patches is not None:
            merges_per_block(self.keep, self.r, self.inflection, model.patches, model.encoder_layers)
        decide = functools.partial(self.decide, layers=model.encoder_layers)
        layers = tuple(range(model.encoder_layers))
        return [Stage(Place.ENCODER_LAYER, decide, layers, positions=self.positions, proportional=self.proportional)]

    def decide(self, tokens: EncoderTokens, layers: int) -> Group | None:
        """Merge as many pairs as the schedule has for this block of `layers`."""
        schedule = merges_per_block(self.keep, self.r, self.inflection, tokens.patches, layers)
        merges = min(schedule[tokens.layer], (tokens.keys.shape[1] - tokens.protected) // 2)
        if merges <= 0:
            return None
        return dataclasses.replace(merge_step(tokens.keys, merges, tokens.protected), weighted=self.weighted)


def merge_step(keys: Tensor, merges: int, protected: int = 0) -> Group:
    """Merge the `merges` most similar pairs of tokens, measured on keys (pictures, tokens, channels)."""
    matching = bipartite_matching(keys, merges, protected=protected)
    return Group(*owner_map(matching, keys.shape[1], protected=protected))


Merges = int | tuple[int, ...] | None


def check_merges(r: object, inflection: float) -> Merges:
    """Check the merges per block that a user wrote, and the slope of their schedule.

    Raises:
        TypeError, ValueError: One of them is out of range, or a slope stands beside no single number.
    """
    merges = None if r is None else check_whole_numbers("r", r, least=0)
    check_number("inflection", inflection, -1, 1)
    if inflection and not isinstance(merges, int):
        raise ValueError(f"inflection={inflection!r} needs a single whole number r, got r={r!r}.")
    return merges


def merges_per_block(keep: Budget, r: Merges, inflection: float, patches: int, layers: int) -> tuple[int, ...]:
    """The schedule that a budget, or `r` with its slope, stands for."""
    if r is None:
        return even_schedule(patches, token_count(keep, patches), layers)
    return expand_schedule(r, layers, inflection)


@functools.lru_cache(maxsize=256)
def even_schedule(patches: int, left: int, layers: int) -> tuple[int, ...]:
    """Merges per layer that leave `left` of `patches`: the same everywhere, the remainder goes to the first layers.

    A layer can merge at most half of what arrives. Where the even schedule would ask for more, earlier layers take
    over, and the last ones merge less.

    Raises:
        ValueError: Even halving in every layer would leave more; the message says how many.
    """
    least = patches
    for _ in range(layers):
        least -= least // 2
    if left < least:
        raise ValueError(
            f"keep must leave at least {least} of {patches} patches, got {left}: each of the {layers} encoder blocks "
            f"can merge at most half of the patches that reach it."
        )
    total = patches - left
    for asked in range(total, layers * total + 1):
        more = asked % layers
        schedule, arriving = [], patches
        for layer in range(layers):
            merges = min(asked // layers + (layer < more), arriving // 2, arriving - left)
            schedule.append(merges)
            arriving -= merges
        if arriving == left:
            break
    return tuple(schedule)


def expand_schedule(r: int | Sequence[int], layers: int, inflection: float = 0.0) -> tuple[int, ...]:
    """Merges per layer as the paper's code writes them: a number with a slope, or a list that zeros complete."""
    if not isinstance(r, int):
        return (*r, *[0] * (layers - len(r)))
    low = int(r * (1.0 - inflection))
    step = (2 * r - 2 * low) / max(layers - 1, 1)
    return tuple(int(low + step * layer) for layer in range(layers))
