"""Shrinks each picture's feature map by a low-pass filter in the frequency domain (discrete cosine transform).

Rows and columns of the map are transformed, high frequencies are cut off, and what is left is transformed back to a
smaller grid, every token of which is new.

Paper: "Fourier-VLM: Compressing Vision Tokens in the Frequency Domain for Large Vision-Language Models",
arXiv 2508.06038. Authors' code: github.com/whyisverysmart/Fourier-Compressor.
Differs from the paper in: the default gain is 1, so that the mean of the features stays (the released code multiplies
it by sqrt(old / new tokens), which its fine-tuned checkpoints have learnt: `gain="official"`); the budget may be any
`keep`; two small matrix products instead of a fast Fourier transform. On all families it acts where the engine
hands over `encoded`; the frames of a video are filtered one by one unless `frames` asks for a transform over time,
which is ours. So is `energy`: the small grid then follows from the spectrum of every map by itself, as wide, as high
and as large as what varies in it asks for, within the budget. Maps of one batch keep different numbers of tokens.
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

from vtprune.budget import Budget, check_keep, token_count
from vtprune.kernels._shared import full_precision
from vtprune.methods._grids import cell_owner, fit_grid
from vtprune.methods._select import check_choice, check_number, check_whole_numbers
from vtprune.methods._spectrum import energies, strongest_blocks
from vtprune.methods.base import Method, ModelInfo, Pictures, Place, Positions, Replace, Stage
from vtprune.methods.registry import register


@register("fourier")
@dataclasses.dataclass(frozen=True)
class Fourier(Method):
    """Low-pass compression of the feature map at the encoder's output."""

    kind = "frequency"
    places = (Place.ENCODER_OUTPUT,)
    paper = "Fourier-VLM, arXiv 2508.06038"
    cost = "N C sqrt(K) + K C sqrt(N), two matrix products"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture; without effect once `side` or `ratio` is given
    side: int | tuple[int, int] | None = None  # rows and columns of the small grid, at most those of the picture
    frames: Budget | None = None  # frames left of a video, filtered over time: share in (0, 1] or number; None: all
    ratio: float | None = None  # share of each side in (0, 1], rounded down, at least 1; the Qwen-VL code has 2 / 3
    energy: float | None = None  # keep the fewest cells that hold so much of what varies, in (0, 1]; 1: all that fit
    norm: Literal["ortho", "none"] = "ortho"  # scaling of the transform; matters only with gain="official"
    gain: Literal["unit", "official"] = "unit"  # "unit" keeps the mean, "official" as released with the checkpoints
    positions: Positions = "auto"  # "auto": "compact" on LLaVA and Qwen-VL as in the authors' code, else "original"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("norm", self.norm, ("ortho", "none"))
        check_choice("gain", self.gain, ("unit", "official"))
        if self.side is not None and self.ratio is not None:
            raise ValueError(f"give side or ratio, not both; got side={self.side!r} and ratio={self.ratio!r}.")
        if self.ratio is not None:
            check_number("ratio", self.ratio, 0, 1, above_low=True)
        if self.energy is not None:
            check_number("energy", self.energy, 0, 1, above_low=True)
        if self.frames is not None:
            object.__setattr__(self, "frames", check_keep(self.frames, name="frames"))
        if self.side is not None:
            object.__setattr__(self, "side", check_whole_numbers("side", self.side, least=1, count=2))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One replacement at the encoder's output; needs the whole grid."""
        # With rows and columns in position ids, dense ones are those of a smaller picture.
        positions = "compact" if self.positions == "auto" and model.position_axes == 3 else self.positions
        return [
            Stage(
                Place.ENCODER_OUTPUT,
                self.decide,
                positions=positions,
                needs_grid=True,
                over_time=self.frames is not None,
            )
        ]

    def decide(self, pictures: Pictures) -> Replace | None:
        """Filter every frame of every picture."""
        if pictures.grid is None:
            raise ValueError("method 'fourier' needs the whole grid of a picture, but its tokens were merged.")
        frames, rows, columns = pictures.grid
        left = frames if self.frames is None else token_count(self.frames, frames)
        small = self.small_grid(frames, rows, columns, left)
        if (left, *small) == pictures.grid and self.energy is None:
            return None
        if self.energy is not None:
            return self.by_energy(pictures.encoded, pictures.grid, left)
        maps = self.maps(pictures.encoded, pictures.grid, left)
        features = low_pass(maps, (rows, columns), small, norm=self.norm, gain=self.gain)
        owner = cell_owner(frames, (rows, columns), small, left).to(maps.device)
        count = len(pictures.encoded)
        return Replace(features.reshape(count, -1, maps.shape[-1]), owner.expand(count, -1))

    def maps(self, x: Tensor, grid: tuple[int, int, int], left: int) -> Tensor:
        """One map for each of the `left` frames of every picture: (pictures * left, rows * columns, channels)."""
        if left < grid[0]:
            x = low_pass_in_time(x, grid[0], left, norm=self.norm, gain=self.gain)
        return x.reshape(-1, grid[1] * grid[2], x.shape[-1])

    def by_energy(self, x: Tensor, grid: tuple[int, int, int], left: int) -> Replace:
        """Filter every map down to a grid of its own; the groups of a frame are padded to those of the largest."""
        frames, sides, device = grid[0], grid[1:], x.device
        most = self.most(*grid, left)
        blocks = strongest_blocks(energies(self.maps(x, grid, left), sides), most, self.energy or 1.0).tolist()
        shapes = {(h, w) for h, w in blocks}
        widest = max(h * w for h, w in shapes)
        alike = {shape: torch.tensor([i for i, b in enumerate(blocks) if tuple(b) == shape]) for shape in shapes}

        def features(x: Tensor) -> Tensor:
            maps = self.maps(x, grid, left)
            new = maps.new_zeros(len(maps), widest, maps.shape[2])
            for shape, numbers in alike.items():
                small = low_pass(maps[numbers], sides, shape, norm=self.norm, gain=self.gain)
                new = new.index_put((numbers.to(device),), F.pad(small, (0, 0, 0, widest - small.shape[1])))
            return new.reshape(len(x), -1, maps.shape[2])

        cell = torch.empty(len(blocks), sides[0] * sides[1], dtype=torch.int64)
        for shape, numbers in alike.items():
            cell[numbers] = cell_owner(1, sides, shape)
        frame = torch.arange(frames) * left // frames
        owner = (cell.view(-1, left, cell.shape[1])[:, frame] + (frame * widest)[:, None]).flatten(1)
        return Replace(features(x), owner.to(device), ragged=True, again=features)

    def most(self, frames: int, rows: int, columns: int, left: int) -> int:
        """How many cells a frame may keep, if `left` frames share the budget of all."""
        if self.side is not None or self.ratio is not None:
            down, across = self.small_grid(frames, rows, columns)
            return down * across
        return min(max(token_count(self.keep, frames * rows * columns) // left, 1), rows * columns)

    def small_grid(self, frames: int, rows: int, columns: int, left: int | None = None) -> tuple[int, int]:
        """Rows and columns of the compressed grid of one frame, if `left` frames share the budget of all."""
        if self.side is not None:
            side = (self.side, self.side) if isinstance(self.side, int) else self.side
            return min(side[0], rows), min(side[1], columns)
        if self.ratio is not None:
            return max(int(rows * self.ratio), 1), max(int(columns * self.ratio), 1)
        return fit_grid(token_count(self.keep, frames * rows * columns) / (left or frames), rows, columns)


def low_pass(
    features: Tensor,
    grid: tuple[int, int],
    small: tuple[int, int],
    *,
    norm: str = "ortho",
    gain: str = "unit",
) -> Tensor:
    """Keep the lowest `small` frequencies of maps (pictures, rows * columns, channels) and sample them on that grid.

    Computed in float32, returned in the type of `features`: (pictures, small rows * small columns, channels).
    """
    for name, new, old in zip(("rows", "columns"), small, grid, strict=True):
        if not 1 <= new <= old:
            raise ValueError(f"{name} of the small grid must be from 1 to {old}, got {new}.")
    down, across = (
        resampling_matrix(old, new, norm, gain).to(features.device) for old, new in zip(grid, small, strict=True)
    )
    maps = features.float().unflatten(1, grid)  # (pictures, rows, columns, channels)
    with full_precision(maps):
        maps = (across @ maps).transpose(1, 2)  # (pictures, small columns, rows, channels)
        maps = (down @ maps).transpose(1, 2)
    return maps.flatten(1, 2).to(features.dtype)


def low_pass_in_time(features: Tensor, frames: int, left: int, *, norm: str = "ortho", gain: str = "unit") -> Tensor:
    """Keep the `left` lowest frequencies over time of videos (videos, frames * cells, channels), sampled `left` times.

    Computed in float32, returned in the type of `features`: (videos, left * cells, channels).
    """
    matrix = resampling_matrix(frames, left, norm, gain).to(features.device)
    videos = features.float().unflatten(1, (frames, -1)).flatten(2)  # (videos, frames, cells * channels)
    with full_precision(videos):
        small = matrix @ videos
    return small.view(len(features), -1, features.shape[2]).to(features.dtype)


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # a cached inference tensor would be of no use in training
def resampling_matrix(old: int, new: int, norm: str = "ortho", gain: str = "unit") -> Tensor:
    """(new, old) float32 on the CPU: cosine transform of length `old`, its lowest `new` terms, inverse of length `new`.

    The gain of a constant signal is 1 for "unit"; for "official" sqrt(old / new), or old / new without the orthonormal
    scaling of the transforms.
    """
    frequency = torch.arange(new, dtype=torch.float64)[:, None]
    forward = (math.pi / (2 * old) * frequency * (2 * torch.arange(old) + 1)).cos()  # (new, old)
    inverse = (math.pi / (2 * new) * frequency * (2 * torch.arange(new) + 1)).cos()  # (new, new)
    forward[1:] *= 2
    factor = 1.0 if gain == "unit" else (old / new) ** (0.5 if norm == "ortho" else 1.0)
    return (inverse.T @ forward * (factor / old)).float()
