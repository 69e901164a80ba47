"""How tiny-qwen2.5-vl is trained: pictures of many shapes, and its tower over whole batches at once.

The tower of transformers takes pictures one behind the other and looks into each window in turn. Here the pictures of a
batch are of one shape, so all windows are seen to together; a test compares the results.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vtprune.evals.clips import CLIP_SIZE, Clip, draw_clip
from vtprune.evals.family import Batch, Family, clip_questions, picture_questions, stacked
from vtprune.evals.patch_targets import clip_targets, object_targets
from vtprune.evals.scenes import draw_scene, make_scene
from vtprune.evals.slots import Layout, products
from vtprune.evals.tiny_llava import GRID, IMAGE_ID, PATCH_SIZE
from vtprune.evals.tiny_qwen2_5_vl import (
    END_TOKEN,
    FRAMES_PER_STEP,
    FULL_LAYERS,
    HEAD_DIM,
    PICTURE_TOKEN,
    START_TOKEN,
    VIDEO_TOKEN,
    WINDOW,
    build_qwen_processor,
    new_qwen,
    tower_frequencies,
)

SHAPES: tuple[tuple[int, int], ...] = (
    *[(GRID, GRID)] * 6,
    *[(10, 10)] * 6,
    *[(12, 12), (8, 8)] * 3,
    *((14, 14), (18, 18), (20, 20), (12, 20), (20, 12), (14, 18), (18, 14), (12, 16), (16, 20)),
)
"""Rows and columns of patches of training pictures, one of which is drawn for each batch."""

_CLIP_GRID = CLIP_SIZE // PATCH_SIZE
_WINDOW_GRID = WINDOW // PATCH_SIZE
_HIDDEN = -1e4


class QwenFamily(Family):
    """tiny-qwen2.5-vl: scenes of 112 to 280 px per side, clips of two frames per step."""

    name = "tiny-qwen2.5-vl"
    first_seed = 60_000_000
    sees_motion = True

    def new_model(self, llava: LlavaForConditionalGeneration, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
        """See `new_qwen`."""
        return new_qwen(llava, seed)

    def build_processor(self) -> Qwen2_5_VLProcessor:
        """See `build_qwen_processor`."""
        return build_qwen_processor()

    def tower(self, model: Any) -> nn.Module:
        """The vision tower with the merger."""
        return model.model.visual

    def pictures(
        self,
        seeds: Sequence[int],
        *,
        characters: float,
        shares: Sequence[float] | None = None,
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """Scenes, all stretched to a shape that `rng` draws."""
        rows, columns = SHAPES[0 if rng is None else rng.integers(len(SHAPES))]
        scenes = [make_scene(seed, characters=characters) for seed in seeds]
        size = columns * PATCH_SIZE, rows * PATCH_SIZE
        drawn = [draw_scene(scene).resize(size, Image.Resampling.BICUBIC) for scene in scenes]
        frames = torch.from_numpy(np.stack([np.asarray(picture) for picture in drawn]))
        targets = stacked([object_targets(scene.objects, rows, columns)[0] for scene in scenes])
        asked = [torch.stack(part) for part in zip(*(picture_questions(s, shares) for s in scenes), strict=True)]
        words, place = (_merged(part.unsqueeze(1), rows, columns) for part in targets)
        pixels = patches(frames[:, None].expand(-1, FRAMES_PER_STEP, -1, -1, -1), rows, columns)
        return _batch(pixels, (1, rows, columns), words, place, asked, clips=False)

    def clips(self, clips: Sequence[Clip]) -> Batch:
        """Clips of the same number of steps; the last frame of an odd number is shown twice, as by the processor."""
        steps = self.steps(clips[0])
        drawn = [draw_clip(clip) for clip in clips]
        frames = np.stack([one[np.minimum(np.arange(steps * FRAMES_PER_STEP), len(one) - 1)] for one in drawn])
        targets = stacked([clip_targets(clip, FRAMES_PER_STEP, _CLIP_GRID) for clip in clips])
        asked = [torch.stack(part) for part in zip(*map(clip_questions, clips), strict=True)]
        words, place = (_merged(part, _CLIP_GRID, _CLIP_GRID) for part in targets)
        pixels = patches(torch.from_numpy(frames), _CLIP_GRID, _CLIP_GRID)
        return _batch(pixels, (steps, _CLIP_GRID, _CLIP_GRID), words, place, asked, clips=True)

    def steps(self, clip: Clip) -> int:
        """Two frames are a step."""
        return -(-clip.frames // FRAMES_PER_STEP)

    def look(self, model: Any, pixels: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Run tower and merger over patches (batch, patches, 1176) of a grid of (steps, rows, columns)."""
        tower, (steps, rows, columns) = model.model.visual, grid
        batch, count = len(pixels), rows * columns
        rotation, windows, bias = _geometry(rows, columns)
        order = None if windows is None else windows.flatten().to(pixels.device)
        rotation = rotation.to(pixels.device)
        embedded = functional.linear(pixels, tower.patch_embed.proj.weight.flatten(1))
        states = embedded.reshape(batch * steps, count, -1)
        if order is not None:
            states, rotation = states[:, order], rotation[:, order]
        for place, block in enumerate(tower.blocks):
            normed = block.norm1(states)
            if place in FULL_LAYERS:
                seen = _attend(block.attn, normed, rotation, None)
            elif windows is None:
                seen = _attend(block.attn, normed, rotation, bias)
            else:
                inside = normed.reshape(batch * steps, *windows.shape, -1)
                turned = rotation.unflatten(1, windows.shape).unsqueeze(2)
                seen = _attend(block.attn, inside, turned, None).view_as(states)
            states = states + seen
            states = states + block.mlp(block.norm2(states))
        if order is not None:
            states = states[:, order.argsort()]
        states = states.reshape(batch, steps * count, -1)
        return states, tower.merger(states).view(batch, steps * count // 4, -1)


def patches(frames: Tensor, rows: int, columns: int) -> Tensor:
    """Frames (batch, frames, height, width, 3), uint8, as the processor has them: (batch, patches, 1176)."""
    batch, count = frames.shape[:2]
    mean, std = frames.new_tensor(OPENAI_CLIP_MEAN, dtype=torch.float32), torch.tensor(OPENAI_CLIP_STD)
    steps = count // FRAMES_PER_STEP
    shape = (batch, steps, FRAMES_PER_STEP, rows // 2, 2, PATCH_SIZE, columns // 2, 2, PATCH_SIZE, 3)
    cut = ((frames.float() / 255 - mean) / std).view(shape).permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return cut.reshape(batch, steps * rows * columns, -1)


def _batch(
    pixels: Tensor, grid: tuple[int, int, int], words: Tensor, place: Tensor, asked: list[Tensor], *, clips: bool
) -> Batch:
    tokens = words.unflatten(1, (-1, 4)), place.unflatten(1, (-1, 4))
    counting = torch.ones(tokens[0].shape[1])
    ids, labels, kinds = asked
    return Batch(pixels, grid, _layout(*grid, clips), (words, place), tokens, counting, ids, labels, kinds, clips)


def _merged(targets: Tensor, rows: int, columns: int) -> Tensor:
    """Targets (batch, steps, patches, ...) row by row, in the order of the processor: cells of 2 x 2 patches."""
    cells = targets.unflatten(2, (rows // 2, 2, columns // 2, 2)).transpose(3, 4)
    return cells.flatten(1, 5).contiguous()


@functools.lru_cache(maxsize=64)
def _layout(steps: int, rows: int, columns: int, video: bool) -> Layout:
    """The prefix; positions are those of `get_rope_index` at 24 frames per second."""
    high, wide = rows // 2, columns // 2
    seen = (VIDEO_TOKEN if video else PICTURE_TOKEN) * (steps * high * wide)
    tokenizer = _tokenizer()
    ids = torch.tensor(tokenizer(f"USER: {START_TOKEN}{seen}{END_TOKEN}\n").input_ids)
    visual = ((ids == IMAGE_ID) | (ids == tokenizer.convert_tokens_to_ids(VIDEO_TOKEN))).nonzero()[:, 0]
    first, behind = int(visual[0]), len(ids) - int(visual[-1]) - 1
    axes = torch.meshgrid(torch.arange(steps), torch.arange(high), torch.arange(wide), indexing="ij")
    start = first + max(high, wide)
    parts = (
        torch.arange(first).expand(3, -1),
        first + torch.stack([axis.flatten() for axis in axes]),
        (start + torch.arange(behind)).expand(3, -1),
    )
    return Layout(ids, visual, torch.cat(parts, dim=1), start + behind)


@functools.cache
def _tokenizer() -> Any:
    return build_qwen_processor().tokenizer


@functools.lru_cache(maxsize=64)
def _geometry(rows: int, columns: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rotations and windows of a grid, in the processor's order of patches.

    Returns:
        Cosines and sines, (2, patches, head); the patches of each window, (windows, patches), if all windows are full,
        else None; and then what keeps patches of different windows apart, (patches, patches).
    """
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    row, column = (_merged(axis.reshape(1, 1, -1), rows, columns)[0] for axis in (row, column))
    angle = torch.cat([row[:, None] * tower_frequencies(), column[:, None] * tower_frequencies()], dim=1).repeat(1, 2)
    rotation = torch.stack([angle.cos(), angle.sin()])
    window = row // _WINDOW_GRID * columns + column // _WINDOW_GRID
    if rows % _WINDOW_GRID == 0 and columns % _WINDOW_GRID == 0:
        return rotation, window.argsort(stable=True).view(-1, _WINDOW_GRID * _WINDOW_GRID), None
    return rotation, None, torch.where(window[:, None] == window, 0.0, _HIDDEN)


def _attend(attention: Any, states: Tensor, rotation: Tensor, bias: Tensor | None) -> Tensor:
    """A layer's attention over (..., patches, width) with rotations (2, ..., patches, head)."""
    split = attention.qkv(states).unflatten(-1, (3, attention.num_heads, HEAD_DIM)).movedim(-3, 0).transpose(-2, -3)
    with torch.autocast(states.device.type, enabled=False):
        cos, sin = rotation.to(split.dtype)
        query, key = (part * cos + _turned(part) * sin for part in split[:2])
        seen = products(query * HEAD_DIM**-0.5, key, split[2], None if bias is None else bias.to(states.device))
    return attention.proj(seen.transpose(-2, -3).flatten(-2))


def _turned(part: Tensor) -> Tensor:
    first, second = part.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
