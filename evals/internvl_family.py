"""How tiny-internvl is trained: what it is shown, in tiles, and how it looks at them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, InternVLProcessor, LlavaForConditionalGeneration

from vtprune.evals.clips import Clip, draw_clip
from vtprune.evals.family import Batch, Family, clip_questions, picture_questions, stacked
from vtprune.evals.patch_targets import PatchTargets, clip_targets, object_targets
from vtprune.evals.scenes import SIZE, draw_scene, make_scene
from vtprune.evals.slots import Layout
from vtprune.evals.student import normalised
from vtprune.evals.tiny_internvl import (
    END_TOKEN,
    PICTURE_TOKEN,
    START_TOKEN,
    TILE,
    TILE_GRID,
    TOKENS_PER_TILE,
    build_internvl_processor,
    new_internvl,
)
from vtprune.evals.tiny_llava import GRID, IMAGE_ID

_SIDE = SIZE // TILE
_TILES = _SIDE * _SIDE


class InternVLFamily(Family):
    """tiny-internvl: scenes of 224 px as four tiles and a thumbnail, frames of 112 px as one tile each."""

    name = "tiny-internvl"
    first_seed = 30_000_000

    def new_model(self, llava: LlavaForConditionalGeneration, seed: int = 0) -> InternVLForConditionalGeneration:
        """See `new_internvl`."""
        return new_internvl(llava, seed)

    def build_processor(self) -> InternVLProcessor:
        """See `build_internvl_processor`."""
        return build_internvl_processor()

    def tower(self, model: Any) -> nn.Module:
        """The vision tower, without the projector."""
        return model.model.vision_tower

    def pictures(
        self,
        seeds: Sequence[int],
        *,
        characters: float,
        shares: Sequence[float] | None = None,
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """Scenes as the processor cuts them; all are of the same size, so nothing is drawn from `rng`."""
        scenes = [make_scene(seed, characters=characters) for seed in seeds]
        tiles = torch.from_numpy(np.stack([_cut(draw_scene(scene)) for scene in scenes]))
        targets = [_scene_targets([*scene.objects]) for scene in scenes]
        asked = [torch.stack(part) for part in zip(*(picture_questions(s, shares) for s in scenes), strict=True)]
        counting = torch.zeros((_TILES + 1) * TOKENS_PER_TILE)
        counting[-TOKENS_PER_TILE:] = 1.0
        layout = _layout((START_TOKEN + PICTURE_TOKEN * len(counting) + END_TOKEN,))
        return _batch(tiles, stacked(targets), layout, counting, asked, clips=False)

    def clips(self, clips: Sequence[Clip]) -> Batch:
        """Clips of the same number of frames."""
        tiles = torch.from_numpy(np.stack([draw_clip(clip) for clip in clips]))
        targets = [clip_targets(clip, 1, TILE_GRID) for clip in clips]
        asked = [torch.stack(part) for part in zip(*map(clip_questions, clips), strict=True)]
        frame = START_TOKEN + PICTURE_TOKEN * TOKENS_PER_TILE + END_TOKEN
        layout = _layout(tuple(f"Frame{number + 1}: {frame}" for number in range(tiles.shape[1])))
        return _batch(tiles, stacked(targets), layout, torch.ones(layout.visual.shape), asked, clips=True)

    def steps(self, clip: Clip) -> int:
        """Every frame is a step."""
        return clip.frames

    def look(self, model: Any, pixels: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Run tower and projector over tiles (batch, tiles, 112, 112, 3), uint8."""
        inner, shape = model.model, pixels.shape[:2]
        states = inner.vision_tower(normalised(pixels.flatten(0, 1))).last_hidden_state[:, 1:]
        shuffled = inner.pixel_shuffle(states.unflatten(1, (TILE_GRID, TILE_GRID))).flatten(1, 2)
        features = inner.multi_modal_projector(shuffled)
        return states.unflatten(0, shape).flatten(1, 2), features.unflatten(0, shape).flatten(1, 2)


def _batch(
    tiles: Tensor,
    targets: tuple[Tensor, Tensor],
    layout: Layout,
    counting: Tensor,
    asked: list[Tensor],
    *,
    clips: bool,
) -> Batch:
    """A batch from targets (batch, tiles, patches, ...)."""
    words, place = targets
    patches = words.flatten(1, 2), place.flatten(1, 2)
    order = _patches_of_tokens()
    tokens = words[:, :, order].flatten(1, 2), place[:, :, order].flatten(1, 2)
    ids, labels, kinds = asked
    return Batch(tiles, (), layout, patches, tokens, counting, ids, labels, kinds, clips)


@functools.cache
def _patches_of_tokens() -> Tensor:
    """The four patches of each visual token of a tile, in the order of the pixel shuffle's channels."""
    index = torch.arange(TILE_GRID * TILE_GRID).view(TILE_GRID // 2, 2, TILE_GRID // 2, 2)
    return index.permute(0, 2, 1, 3).reshape(TOKENS_PER_TILE, 4)


@functools.lru_cache(maxsize=32)
def _layout(pictures: tuple[str, ...]) -> Layout:
    ids = torch.tensor(_tokenizer()("USER: " + "\n".join(pictures) + "\n").input_ids)
    return Layout(ids, (ids == IMAGE_ID).nonzero()[:, 0], torch.arange(len(ids)), len(ids))


@functools.cache
def _tokenizer() -> Any:
    return build_internvl_processor().tokenizer


def _cut(picture: Image.Image) -> np.ndarray:
    """The tiles of a picture, row by row, and the thumbnail: (5, 112, 112, 3)."""
    boxes = [(x, y, x + TILE, y + TILE) for y in range(0, SIZE, TILE) for x in range(0, SIZE, TILE)]
    tiles = [picture.crop(box) for box in boxes]
    return np.stack([np.asarray(tile) for tile in (*tiles, picture.resize((TILE, TILE), Image.Resampling.BICUBIC))])


def _scene_targets(objects: list[Any]) -> PatchTargets:
    """The targets of a scene's tiles and thumbnail, (5, 64, ...)."""
    whole, small = object_targets(objects, GRID, GRID)[0], object_targets(objects, TILE_GRID, TILE_GRID)[0]
    cut = []
    for part, thumbnail in zip(whole, small, strict=True):
        tiles = part.reshape(_SIDE, TILE_GRID, _SIDE, TILE_GRID, -1).transpose(0, 2, 1, 3, 4)
        cut.append(np.concatenate([tiles.reshape(_TILES, TILE_GRID * TILE_GRID, -1), thumbnail[None]]))
    return PatchTargets(*cut)
