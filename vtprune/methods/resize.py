"""Makes the picture smaller, so that the model itself uses fewer tokens: the baseline that everything else must beat.

Models that take pictures of any size (Qwen-VL) get the smaller picture: its pixels are resampled before the encoder,
which then has less to do, and the prompt has the tokens and positions of a picture of that size. Models of one size
(CLIP and SigLIP towers, tiles) cannot be given less: their grid of patches, its position embeddings and the tiling are
fixed. There the grid of features is resampled instead, where whole-grid methods act.

Paper: none. Differs from the paper in: nothing to differ from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget, token_count
from vtprune.methods._grids import cell_owner, fit_grid
from vtprune.methods._select import check_choice
from vtprune.methods.base import Method, ModelInfo, Pictures, Pixels, Place, Positions, Replace, Resize, Stage
from vtprune.methods.registry import register

Filter = Literal["bicubic", "bilinear", "area"]


@register("resize")
@dataclasses.dataclass(frozen=True)
class Resizing(Method):
    """A smaller picture at the encoder's input, or a smaller grid of features at its output.

    The grid is the one of the same shape whose number of tokens is nearest to the budget. Videos keep all frames, and
    share the budget among them.
    """

    kind = "baseline"
    places = (Place.ENCODER_INPUT, Place.ENCODER_OUTPUT)
    cost = "one pass over the pixels, or N C over the features"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture (per map or tile where features are resampled)
    filter: Filter = "bicubic"  # of pixels and of features, all without aliasing
    positions: Positions = "auto"  # "auto": those of a smaller picture on LLaVA and with M-RoPE, else "original"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("filter", self.filter, ("bicubic", "bilinear", "area"))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One stage before the encoder where it takes any size, else one behind it."""
        positions = "compact" if self.positions == "auto" and model.position_axes == 3 else self.positions
        if model.any_size:
            return [Stage(Place.ENCODER_INPUT, self.shrink_pixels, positions=positions)]
        return [Stage(Place.ENCODER_OUTPUT, self.shrink_features, positions=positions, needs_grid=True)]

    def shrink_pixels(self, picture: Pixels) -> Resize | None:
        """A smaller picture in the place of the picture."""
        _, *grid = picture.grid
        small = self.small_grid(picture.grid)
        sides = [side // old * new for side, old, new in zip(picture.pixels.shape[2:], grid, small, strict=True)]
        return None if small == tuple(grid) else Resize(resample(picture.pixels, sides, self.filter))

    def shrink_features(self, pictures: Pictures) -> Replace | None:
        """A smaller grid of features in the place of the grid."""
        if pictures.grid is None:
            raise ValueError("method 'resize' needs the whole grid of a picture, but its tokens were merged.")
        frames, *grid = pictures.grid
        small = self.small_grid(pictures.grid)
        if small == tuple(grid):
            return None
        maps = pictures.encoded.unflatten(1, (-1, *grid)).flatten(0, 1).permute(0, 3, 1, 2)
        new = resample(maps, small, self.filter).permute(0, 2, 3, 1).flatten(1, 2)
        owner = cell_owner(frames, (grid[0], grid[1]), small).to(new.device)
        return Replace(new.reshape(len(pictures.encoded), -1, new.shape[2]), owner.expand(len(pictures.encoded), -1))

    def small_grid(self, grid: tuple[int, int, int]) -> tuple[int, int]:
        """Rows and columns of a frame of the smaller picture."""
        frames, rows, columns = grid
        return fit_grid(token_count(self.keep, frames * rows * columns) / frames, rows, columns)


def resample(maps: Tensor, size: Sequence[int], how: Filter = "bicubic") -> Tensor:
    """Resample maps (n, channels, height, width) to a smaller size, in float32; what is left out does not alias."""
    if how == "area":
        small = F.interpolate(maps.float(), tuple(size), mode="area")
    else:
        small = F.interpolate(maps.float(), tuple(size), mode=how, antialias=True)
    return small.to(maps.dtype)
