"""Merges visual tokens of large groups of look-alikes behind every block of the vision encoder, and spares the rest.

A token's energy says how many others resemble it. The tokens with most energy are paired off: every second one, by
energy, joins the most similar of those between. Tokens that stand alone are left as they are.

Paper: "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024, arXiv 2405.16148.
Authors' code: github.com/hchautran/PiToMe.
Differs from the paper in: it follows the authors' code for LLaVA, where energy is ELU(cosine - margin) instead of a
function with a jump, features are the block's output instead of its keys, groups are averaged plainly, attention is
not weighed by size, and the first 13 of 24 blocks merge as ToMe does. `keep` names the patches left at the end, the
ratio per block follows from it; tokens enter the language model in the order of their first patch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget, token_count
from vtprune.kernels import Matching, bipartite_matching, owner_map
from vtprune.kernels._cosine import live_unit_rows
from vtprune.kernels._shared import first_argmax
from vtprune.methods._select import check_choice, check_number, check_whole_numbers, given
from vtprune.methods.base import EncoderTokens, Group, Method, ModelInfo, Place, Positions, Stage
from vtprune.methods.registry import register
from vtprune.methods.tome import even_schedule


@register("pitome")
@dataclasses.dataclass(frozen=True)
class PiToMe(Method):
    """Energy-based merging; the class token stays alone.

    Of 576 patches, the ratios 0.95, 0.925 and 0.9 leave 183, 101 and 54 in LLaVA-1.5. With `keep`, the ratio is the
    smallest of four decimals that leaves enough, and the first blocks merge one pair more each until the number fits.
    """

    kind = "merging"
    places = (Place.ENCODER_LAYER,)
    paper = "PiToMe, NeurIPS 2024, arXiv 2405.16148"
    cost = "n^2 D per block that goes by energy, n^2 D / 4 per early block"

    keep: Budget = 0.25  # ratio in (0, 1] or patches per picture after the last block; without effect with `ratio`
    ratio: float | None = None  # share of tokens that each block keeps, in (0, 1]; the paper has 0.85 to 0.975
    margin: float = 0.9  # similarity from which tokens attract, in the first block, in [-1, 1]; falls to 0 in the last
    alpha: float = 1.0  # strength of the repulsion below the margin, >= 0
    early_blocks: int | None = None  # so many first blocks merge in another way; None: 13 of 24, as for LLaVA
    early: Literal["plain", "halves"] = "plain"  # that way: as ToMe does; or the best pairs of two halves by energy
    features: Literal["hidden", "keys"] = "hidden"  # what similarity is measured on
    after_block: bool = True  # merge the block's output, as in the authors' code for LLaVA; False: before its MLP
    weighted: bool = False  # weigh tokens by size in averages
    proportional: bool = False  # weigh attention by token size
    positions: Positions = "auto"  # position ids in the language model: "compact", "original" or "auto" (see `Stage`)

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.ratio is not None:
            check_number("ratio", self.ratio, 0, 1, above_low=True)
        check_number("margin", self.margin, -1, 1)
        check_number("alpha", self.alpha, 0, 1e6)
        check_choice("early", self.early, ("plain", "halves"))
        check_choice("features", self.features, ("hidden", "keys"))
        if self.early_blocks is not None and not isinstance(
            check_whole_numbers("early_blocks", self.early_blocks, least=0), int
        ):
            raise TypeError(f"early_blocks must be one whole number, got {self.early_blocks!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One merge in every encoder block that is used; margins count on to the last block of all."""
        everything = max(model.encoder_layers, len(model.attention_blocks))
        early = round(13 / 24 * everything) if self.early_blocks is None else self.early_blocks
        decide = functools.partial(self.decide, layers=model.encoder_layers, all_layers=everything, early=early)
        if self.ratio is None and model.patches is not None:
            left = token_count(self.keep, model.patches)
            even_schedule(model.patches, left, model.encoder_layers)  # refuses what halving cannot reach
        return [
            Stage(
                Place.ENCODER_LAYER,
                decide,
                tuple(range(model.encoder_layers)),
                positions=self.positions,
                proportional=self.proportional,
                after_block=self.after_block,
            )
        ]

    def decide(self, tokens: EncoderTokens, layers: int, all_layers: int, early: int) -> Group | None:
        """Merge as many tokens as the schedule has for this block."""
        there, protected = tokens.sizes.shape[1], tokens.protected
        plain_blocks = early if self.early == "plain" else 0
        plain = tokens.layer < plain_blocks
        if self.ratio is not None:
            merges = removed(there if plain else there - protected, self.ratio)
        else:
            left = token_count(self.keep, tokens.patches)
            merges = ratio_schedule(tokens.patches, left, layers, plain_blocks, protected)[tokens.layer]
        merges = min(merges, (there - protected) // 2)
        if merges <= 0:
            return None
        metric = given(tokens.hidden, self.name, "hidden") if self.features == "hidden" else tokens.keys
        if plain:
            matching = bipartite_matching(metric, merges, protected=protected)
            owner, groups = owner_map(matching, there, protected=protected)
        else:
            margin, spares = self.margin - self.margin * tokens.layer / all_layers, tokens.layer >= early
            owner, groups = energy_owner(metric, merges, margin, self.alpha, protected, spares=spares)
        return Group(owner, groups, weighted=self.weighted)


class EnergyMatching(NamedTuple):
    """Which tokens merge; indices count unprotected tokens, (pictures, n) each.

    Attributes:
        spared: Those that merge with nobody, by falling energy.
        sources: Those that merge.
        targets: Those that they merge with, as many.
        destinations: For every source the place of its partner in `targets`.
    """

    spared: Tensor
    sources: Tensor
    targets: Tensor
    destinations: Tensor


def energy(metric: Tensor, margin: float, alpha: float = 1.0, block: int = 1024) -> Tensor:
    """How much each token of metric (pictures, tokens, channels) resembles the others: float32, (pictures, tokens).

    The mean of ELU(cosine - margin) over all tokens, by `block` rows at a time.
    """
    unit, _ = live_unit_rows(metric, None)
    rows = [F.elu(part @ unit.transpose(1, 2) - margin, alpha).mean(2) for part in unit.split(block, dim=1)]
    return torch.cat(rows, 1)


def energy_matching(metric: Tensor, merges: int, margin: float, alpha: float = 1.0) -> EnergyMatching:
    """Pair off the 2 * `merges` tokens with most energy: ranks 0, 2, 4, ... each join the nearest of ranks 1, 3, ...

    Of equal energies and similarities the lower index wins.
    """
    merges = min(merges, metric.shape[1] // 2)
    order = energy(metric, margin, alpha).argsort(dim=1, descending=True, stable=True)
    sources, targets = order[:, : 2 * merges : 2], order[:, 1 : 2 * merges : 2]
    return EnergyMatching(order[:, 2 * merges :], sources, targets, _nearest(metric, sources, targets)[1])


def energy_halves_matching(
    metric: Tensor, merges: int, margin: float, alpha: float = 1.0
) -> tuple[Tensor, Tensor, Matching]:
    """The authors' variant that spares nobody: half of the tokens may join the other half, the best `merges` pairs do.

    Returns:
        The halves, ranks 0, 2, 4, ... and 1, 3, 5, ... by falling energy, (pictures, n) each, and the pairs as indices
        into them.
    """
    order = energy(metric, margin, alpha).argsort(dim=1, descending=True, stable=True)
    first, second = order[:, ::2], order[:, 1::2]
    likeness, partner = _nearest(metric, first, second)
    best = likeness.argsort(dim=1, descending=True, stable=True)
    sources = best[:, :merges]
    return first, second, Matching(sources, partner.gather(1, sources), best[:, merges:])


def _nearest(metric: Tensor, sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    unit, _ = live_unit_rows(metric, None)
    if not targets.shape[1]:
        return unit.new_zeros(sources.shape), torch.zeros_like(sources)
    pick = lambda index: unit.gather(1, index[..., None].expand(-1, -1, unit.shape[2]))  # noqa: E731
    return first_argmax(pick(sources) @ pick(targets).transpose(1, 2))


def matching_owner(matching: EnergyMatching, tokens: int, protected: int = 0) -> tuple[Tensor, int]:
    """Owner map and number of groups: protected tokens, spared ones, then targets."""
    spared, sources, targets, destinations = matching
    pictures, alone = spared.shape
    owner = torch.arange(tokens, device=spared.device).repeat(pictures, 1)
    owner.scatter_(1, spared + protected, owner[:, :alone] + protected)
    owner.scatter_(1, sources + protected, destinations + alone + protected)
    target_groups = torch.arange(targets.shape[1], device=spared.device).expand_as(targets) + alone + protected
    owner.scatter_(1, targets + protected, target_groups)
    return owner, protected + alone + targets.shape[1]


def energy_owner(
    metric: Tensor, merges: int, margin: float, alpha: float = 1.0, protected: int = 0, *, spares: bool = True
) -> tuple[Tensor, int]:
    """Match the unprotected tokens by energy; owner map and number of groups.

    Args:
        metric: (pictures, tokens, channels).
        merges: Number of pairs.
        margin: Similarity from which tokens attract.
        alpha: Strength of the repulsion below.
        protected: So many first tokens stay alone.
        spares: `energy_matching`, else `energy_halves_matching`.
    """
    patches = metric[:, protected:]
    if spares:
        matching = energy_matching(patches, merges, margin, alpha)
    else:
        first, second, pairs = energy_halves_matching(patches, merges, margin, alpha)
        spared, sources = first.gather(1, pairs.unmerged), first.gather(1, pairs.sources)
        matching = EnergyMatching(spared, sources, second, pairs.destinations)
    return matching_owner(matching, metric.shape[1], protected)


def removed(tokens: int, ratio: float) -> int:
    """How many tokens a ratio removes, rounded as in the authors' code."""
    return math.floor(tokens - tokens * ratio)


@functools.lru_cache(maxsize=256)
def ratio_schedule(patches: int, left: int, layers: int, plain: int, protected: int) -> tuple[int, ...]:
    """Merges per block that leave `left` of `patches`, by one ratio for all blocks; see `PiToMe`.

    Raises:
        ValueError: Halving in every block would leave more.
    """

    def expand(ratio: float) -> list[int]:
        merges, there = [], patches
        for layer in range(layers):
            counted = there + protected if layer < plain else there
            merges.append(min(removed(counted, ratio), there // 2))
            there -= merges[-1]
        return merges

    fallback = even_schedule(patches, left, layers)
    low, high = 5000, 10000  # the number left grows with the ratio
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if patches - sum(expand(middle / 10000)) >= left else (middle + 1, high)
    merges = expand(low / 10000)
    more = patches - left - sum(merges)
    merges = [m + more // layers + (layer < more % layers) for layer, m in enumerate(merges)]
    there = patches
    for m in merges:
        if m > there // 2:
            return fallback
        there -= m
    return tuple(merges)
