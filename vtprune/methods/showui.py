"""Finds areas of a screenshot that look the same all over, and keeps a uniform subsample of each.

Neighbouring tokens whose pixels are nearly equal belong to one component, transitively; of every component the share
`keep` stays. What differs from all of its neighbours (text, icons) stays.

Paper: "ShowUI: One Vision-Language-Action Model for GUI Visual Agent", arXiv 2411.17465. Authors' code:
github.com/showlab/ShowUI.
Differs from the paper in: there, tokens pass by chosen decoder layers and stay in the prompt (`skip_layers`), which the
released code does in training only; by default they leave the prompt here, before the language model. No token passes
by the first layer. Tiles, thumbnails and the frames of a video, which the released code does not know, are divided by
themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._select import check_number, check_whole_numbers, given
from vtprune.methods.base import Cells, Keep, Method, ModelInfo, Pictures, Place, Positions, Stage, check_layer
from vtprune.methods.registry import register

OFFICIAL_VALUES = 28 * 28 * 3 * 2
"""Numbers in a cell of Qwen2-VL: pixels, colours, and a still picture's two copies."""


@register("showui")
@dataclasses.dataclass(frozen=True)
class ShowUI(Method):
    """Selection by connected components of equal pixels, at the encoder's output.

    `keep` is the share of every component that stays, so what is saved depends on how much of the picture is blank: a
    photograph keeps everything. The authors' ratio of skipped tokens is 1 - keep. A number of tokens is taken as the
    share of the picture that it is.
    """

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    paper = "ShowUI, arXiv 2411.17465"
    cost = "N log N on pixel differences, which cost one pass over the picture"
    adaptive = True

    keep: Budget = 0.5  # ratio in (0, 1] of every component or, converted to one, tokens per picture
    threshold: float = 1.0  # > 0, L2 distance of normalised 28 x 28 cells; other cells are compared at equal RMS
    skip_layers: tuple[int, ...] | None = None  # layers to pass by, from 1 on; paper: 1, 3, ..., 25 of 28; None: leave
    positions: Positions = "original"  # position ids after the removal: "original", "compact" or "auto"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("threshold", self.threshold, 0, 1e6, above_low=True)
        if self.skip_layers is not None:
            layers = check_whole_numbers("skip_layers", self.skip_layers, least=1)
            object.__setattr__(self, "skip_layers", (layers,) if isinstance(layers, int) else layers)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, on pixels."""
        asked, skips = frozenset({"pixel_steps"}), self.skip_layers or ()
        for layer in skips:
            check_layer("skip_layers", layer, 1, model.decoder_layers - 1)
        return [Stage(Place.ENCODER_OUTPUT, self.decide, signals=asked, positions=self.positions, skips=skips)]

    def decide(self, pictures: Pictures) -> Keep:
        """Divide every picture into components, and keep a share of each."""
        steps = given(pictures.pixel_steps, self.name, "pixel_steps")
        cells = given(pictures.cells, self.name, "cells")
        keep = self.keep if isinstance(self.keep, float) else min(pictures.count(self.keep) / pictures.tokens, 1.0)
        near = distances(steps, OFFICIAL_VALUES) < self.threshold
        return Keep(subsample(components(near, neighbours(cells)), 1 - keep))


def distances(steps: Tensor, values: int) -> Tensor:
    """L2 distances of cells of so many numbers, from their RMS differences."""
    return steps * values**0.5


def neighbours(cells: Cells) -> Tensor:
    """(pictures, tokens, 2): index of the token on the right and of the one below, on the same map and frame.

    A token without a neighbour, at an edge or beside one that has left, is its own.
    """
    map_, _, frame, row, column = (x.long() for x in cells)
    place = (((map_ << 16) + frame << 16) + row << 16) + column  # ascending, as tokens are in raster order
    wanted = torch.stack((place + 1, place + (1 << 16)), dim=2)
    index = torch.searchsorted(place.contiguous(), wanted.flatten(1)).clamp_max(place.shape[1] - 1)
    found = place.gather(1, index) == wanted.flatten(1)
    own = torch.arange(place.shape[1], device=place.device).repeat_interleave(2)
    return torch.where(found, index, own).view_as(wanted)


def components(near: Tensor, neighbour: Tensor) -> Tensor:
    """Number the connected components of every picture, (pictures, tokens), by their first tokens: 0, 1, 2, ...

    Each round the roots of neighbouring trees are hooked to the lower one, and paths are halved: about log2(tokens)
    rounds, 4 to 8 on screenshots. The host waits once per round.

    Args:
        near: Bool (pictures, tokens, 2), whether a token and its neighbour are nearly equal.
        neighbour: (pictures, tokens, 2), index of that neighbour.
    """
    own = torch.arange(near.shape[1], device=near.device)
    first = own.expand(near.shape[:2])  # of each token's tree, as far as known
    other = torch.where(near, neighbour, own[:, None]).flatten(1)
    this = own.repeat_interleave(2).expand_as(other)
    while True:
        lower = torch.minimum(first.gather(1, this), first.gather(1, other))
        roots = torch.cat((first.gather(1, this), first.gather(1, other)), dim=1)
        hooked = first.scatter_reduce(1, roots, lower.repeat(1, 2), "amin")
        hooked = hooked.gather(1, hooked)
        if torch.equal(hooked, first):
            break
        first = hooked
    begins = first == own
    return (begins.long().cumsum(1) - 1).gather(1, first)


def subsample(component: Tensor, skipped: float) -> Tensor:
    """Mark a uniform subsample of every component: bool, (pictures, tokens).

    Of n tokens round(n * skipped) are left out, halves to even, but at least one stays.

    Args:
        component: (pictures, tokens), numbers from 0 on.
        skipped: Share in [0, 1].
    """
    order = component.argsort(dim=1, stable=True)  # component by component, in reading order
    sorted_component = component.gather(1, order)
    sizes = torch.zeros_like(component).scatter_add(1, component, torch.ones_like(component))
    starts = sizes.cumsum(1) - sizes
    left = (sizes - (sizes.double() * skipped).round().long()).clamp_min(1)
    size, start, count = (x.gather(1, sorted_component) for x in (sizes, starts, left))
    rank = torch.arange(component.shape[1], device=component.device) - start
    # Ranks beyond the count point at the component's first token, which stays anyway.
    chosen = start + torch.where(rank < count, spaced(size, count, rank), 0)
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order.gather(1, chosen), True)


def spaced(size: Tensor, count: Tensor, number: Tensor) -> Tensor:
    """The `number`-th of `count` whole numbers spread evenly over [0, size), as `torch.linspace` has it, truncated.

    Rounded as the CPU does in float32, on every device: from both ends, the upper half with one rounding instead of
    two. Exact arithmetic differs at some sizes (17 of 29).
    """
    last = (size - 1).float()
    step = last / (count - 1).clamp_min(1)
    lower = step * number
    upper = (last.double() - step.double() * (count - 1 - number)).float()
    return torch.where(number < count // 2, lower, upper).long().masked_fill(count == 1, 0)
