"""A tiny random model of every supported family, and pictures and videos for it; no files, no processor."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from tests.prompts import (
    COLON,
    END,
    FRAME,
    IMAGE,
    IMAGE_TOKEN,
    LINE,
    PAD,
    START,
    VIDEO,
    VIDEO_TOKEN,
    VOCABULARY,
    Family,
    Item,
    Row,
    pixels,
)

__all__ = ["FAMILIES", "IMAGE", "IMAGE_TOKEN", "PAD", "VIDEO", "VIDEO_TOKEN", "Family", "Item", "Row", "pixels"]

TEXT = dict(
    vocab_size=VOCABULARY,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    bos_token_id=8,
    eos_token_id=None,
    pad_token_id=PAD,
    initializer_range=0.3,
)
IDS = dict(image_token_id=IMAGE_TOKEN, video_token_id=VIDEO_TOKEN)


def _vision(**more: Any) -> dict[str, Any]:
    shared = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
    return {**shared, "image_size": 48, "patch_size": 8, **more}


def _clip(**more: Any) -> Any:
    return CLIPVisionConfig(**_vision(**more))


def _siglip(**more: Any) -> Any:
    return SiglipVisionConfig(**_vision(**more), vision_use_head=False)


def _llava(vision: Any, strategy: str, layer: int) -> Any:
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    return LlavaForConditionalGeneration(config)


def _llava_item(kind: str, number: int) -> Item:
    return Item(kind, torch.full((36,), IMAGE_TOKEN), {"pixel_values": pixels(1, 3, 48, 48, seed=number)})


# Two by one, one by two, two by two tiles of 32 pixels, 16 patches each; a small picture is one tile, and a thumbnail.
_PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 32]]
_SIZES = [(50, 64), (24, 61), (63, 20), (30, 30), (60, 60)]


def _llava_next() -> Any:
    config = LlavaNextConfig(
        vision_config=_clip(image_size=32),
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE_TOKEN,
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return LlavaNextForConditionalGeneration(config)


def _llava_next_video() -> Any:
    config = LlavaNextVideoConfig(
        vision_config=_clip(image_size=32),
        text_config=LlamaConfig(**TEXT),
        **IDS,
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return LlavaNextVideoForConditionalGeneration(config)


def _llava_next_video_item(kind: str, number: int) -> Item:
    if kind == IMAGE:
        return _llava_next_item(kind, number)
    return Item(kind, torch.full((3 * 4,), VIDEO_TOKEN), {"pixel_values_videos": pixels(1, 3, 3, 32, 32, seed=number)})


def _vipllava() -> Any:
    config = VipLlavaConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layers=[-2, -3, 1],
    )
    return VipLlavaForConditionalGeneration(config)


def _tiles(number: int) -> tuple[Tensor, dict[str, Tensor], tuple[int, int], tuple[int, int]]:
    from transformers.image_processing_utils import select_best_resolution

    size = _SIZES[number % len(_SIZES)]
    height, width = select_best_resolution(size, _PINPOINTS)
    count = height // 32 * (width // 32) + 1
    data = {"pixel_values": pixels(1, count, 3, 32, 32, seed=number), "image_sizes": torch.tensor([size])}
    return torch.tensor(count), data, size, (height // 8, width // 8)


def _next_tokens(size: tuple[int, int], canvas: tuple[int, int], most: int | None = None) -> int:
    """Tokens of a tiled picture by the published formula: thumbnail, unpadded canvas, a newline per row."""
    rows, columns = canvas
    if size[1] / size[0] > columns / rows:
        padding = (rows - int(round(size[0] * columns / size[1], 7))) // 2
        rows -= 2 * padding
    else:
        padding = (columns - int(round(size[1] * rows / size[0], 7))) // 2
        columns -= 2 * padding
    if most is not None:
        ratio = (rows * columns / (most * 16)) ** 0.5
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return 16 + rows * (columns + 1)


def _llava_next_item(kind: str, number: int) -> Item:
    _, data, size, canvas = _tiles(number)
    return Item(kind, torch.full((_next_tokens(size, canvas),), IMAGE_TOKEN), data)


def _llava_onevision() -> Any:
    config = LlavaOnevisionConfig(
        vision_config=_siglip(image_size=32),
        text_config=Qwen2Config(**TEXT),
        **IDS,
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )
    return LlavaOnevisionForConditionalGeneration(config)


def _llava_onevision_item(kind: str, number: int) -> Item:
    if kind == VIDEO:
        ids = torch.full((3 * 4 + 1,), VIDEO_TOKEN)
        return Item(kind, ids, {"pixel_values_videos": pixels(1, 3, 3, 32, 32, seed=number)})
    _, data, size, canvas = _tiles(number)
    return Item(kind, torch.full((_next_tokens(size, canvas, most=2),), IMAGE_TOKEN), data)


_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}


def _qwen_vision(**more: Any) -> dict[str, Any]:
    shared = dict(depth=4, num_heads=4, in_channels=3, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
    return {**shared, **more}


def _qwen2_vl() -> Any:
    vision = _qwen_vision(embed_dim=32, hidden_size=48, mlp_ratio=2)
    text = {**TEXT, "rope_parameters": _MROPE}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=vision, text_config=text, **IDS, **_MARKS))


_MARKS = dict(vision_start_token_id=START, vision_end_token_id=END)


def _qwen2_5_vl() -> Any:
    vision = _qwen_vision(
        hidden_size=32, intermediate_size=48, out_hidden_size=48, window_size=16, fullatt_block_indexes=[1, 3]
    )
    text = {**TEXT, "rope_parameters": _MROPE}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=vision, text_config=text, **IDS, **_MARKS))


def _qwen3_vl() -> Any:
    vision = _qwen_vision(
        hidden_size=32,
        intermediate_size=48,
        out_hidden_size=48,
        num_position_embeddings=36,
        deepstack_visual_indexes=[0, 2],
    )
    text = {**TEXT, "rope_parameters": {**_MROPE, "mrope_section": [2, 2, 2]}, "head_dim": 12}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=vision, text_config=text, **IDS, **_MARKS))


_GRIDS = {IMAGE: [(1, 12, 12), (1, 8, 14), (1, 16, 6)], VIDEO: [(3, 8, 10), (2, 6, 6)]}  # in patches


def _qwen_item(kind: str, number: int, timestamps: bool = False) -> Item:
    frames, rows, columns = _GRIDS[kind][number % len(_GRIDS[kind])]
    patches = pixels(frames * rows * columns, 3, 8, 4, seed=number).flatten(1)
    placeholder = IMAGE_TOKEN if kind == IMAGE else VIDEO_TOKEN
    start, end = torch.tensor([START]), torch.tensor([END])
    if timestamps and kind == VIDEO:
        frame = torch.full((rows * columns // 4,), placeholder)
        ids = torch.cat([x for i in range(frames) for x in (torch.tensor([50 + i]), start, frame, end)])
    else:
        ids = torch.cat((start, torch.full((frames * rows * columns // 4,), placeholder), end))
    name, grid = ("pixel_values", "image_grid_thw") if kind == IMAGE else ("pixel_values_videos", "video_grid_thw")
    return Item(kind, ids, {name: patches, grid: torch.tensor([[frames, rows, columns]])})


def _qwen2_5_item(kind: str, number: int) -> Item:
    item = _qwen_item(kind, number)
    return (
        dataclasses.replace(item, data={**item.data, "second_per_grid_ts": torch.tensor([0.5])})
        if kind == VIDEO
        else item
    )


def _qwen3_item(kind: str, number: int) -> Item:
    return _qwen_item(kind, number, timestamps=True)


def _internvl() -> Any:
    vision = InternVLVisionConfig(**_vision(image_size=[48, 48], patch_size=[8, 8]), use_qk_norm=True)
    config = InternVLConfig(
        vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE_TOKEN, downsample_ratio=0.5
    )
    return InternVLForConditionalGeneration(config)


def _internvl_item(kind: str, number: int) -> Item:
    if kind == VIDEO:
        frames = 3
        one = torch.tensor([FRAME, 50, COLON, START, *[IMAGE_TOKEN] * 9, END, LINE])
        ids = torch.cat([one + (one == 50) * i for i in range(frames)])
        return Item(kind, ids, {"pixel_values": pixels(frames, 3, 48, 48, seed=number)})
    tiles = (3, 1, 2)[number % 3]
    ids = torch.tensor([START, *[IMAGE_TOKEN] * 9 * tiles, END])
    return Item(kind, ids, {"pixel_values": pixels(tiles, 3, 48, 48, seed=number)})


BOTH = (IMAGE, VIDEO)
FAMILIES = {
    family.name: family
    for family in (
        Family("llava-clip", lambda: _llava(_clip(), "default", -2), _llava_item),
        Family("llava-siglip", lambda: _llava(_siglip(), "full", -1), _llava_item),
        Family("vipllava", _vipllava, _llava_item),
        Family("llava_next", _llava_next, _llava_next_item),
        Family("llava_next_video", _llava_next_video, _llava_next_video_item, BOTH),
        Family("llava_onevision", _llava_onevision, _llava_onevision_item, BOTH),
        Family("qwen2_vl", _qwen2_vl, _qwen_item, BOTH, typed=True),
        Family("qwen2_5_vl", _qwen2_5_vl, _qwen2_5_item, BOTH, typed=True),
        Family("qwen3_vl", _qwen3_vl, _qwen3_item, BOTH, typed=True),
        Family("internvl", _internvl, _internvl_item, BOTH),
    )
}

SORTS = ("llava-clip", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
"""One of every sort of prompt and decoder."""
