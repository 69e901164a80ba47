"""Qwen2-VL and Qwen2.5-VL: pictures and videos of any size, 2 x 2 patches merged into a token, M-RoPE."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    apply_rotary_pos_emb_vision,
    get_vision_window_index,
)

from vtprune.integrations.base import EncoderBlock, EncoderCall, Integration, Map, PictureLayout


class Qwen2VLIntegration(Integration):
    """`Qwen2VLForConditionalGeneration`.

    All patches of a call are one sequence in the order of the 2 x 2 blocks that make a token; those of a frame see one
    another. What leaves the tower is merged and projected already, so there are no features before the projector.
    """

    family = "qwen2_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    modalities = ("image", "video")
    position_axes = 3
    any_size = True
    grid_stages = "language model"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.merge = self.model.config.vision_config.spatial_merge_size

    @property
    def tower(self) -> Any:
        return self.multimodal.visual

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        return (self.tower.merger,)

    @property
    def all_encoder_layers(self) -> nn.ModuleList:
        return self.tower.blocks

    @property
    def encoder_blocks(self) -> list[EncoderBlock]:
        blocks: Any = self.all_encoder_layers
        return [EncoderBlock(x, x.attn, (x.attn.qkv,), x.norm2, x.mlp) for x in blocks]

    @property
    def has_cls(self) -> bool:
        return False

    @property
    def encoder_heads(self) -> int:
        return self.model.config.vision_config.num_heads

    @property
    def encoder_width(self) -> int:
        block: Any = self.all_encoder_layers[0]
        return block.attn.proj.in_features

    def refusal(self, method: str, place: str, needs_grid: bool) -> str | None:
        if place == "encoder layer":
            return (
                "merging between vision blocks breaks the 2 x 2 blocks of patches that become one token and the packed "
                "sequences of the vision attention; use fourier, divprune or fastervlm, which act on whole tokens"
            )
        return None

    def encoder_scale(self, block: EncoderBlock) -> float:
        attention: Any = block.attention
        return attention.scaling

    def encoder_attention_implementation(self, block: EncoderBlock) -> str:
        attention: Any = block.attention
        return attention.config._attn_implementation

    def encoder_queries_keys(
        self, block: EncoderBlock, outputs: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> list[tuple[Tensor, Tensor]]:
        attention: Any = block.attention
        queries, keys, _ = outputs[0].unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
        queries, keys = apply_rotary_pos_emb_vision(queries, keys, *inputs["position_embeddings"])
        lengths = inputs["cu_seqlens"].diff().tolist()
        # Neighbouring sequences of one length, the frames of a video say, form a batch.
        batches = [(length, len(list(same))) for length, same in itertools.groupby(lengths)]
        parts = [x.split([length * count for length, count in batches]) for x in (queries, keys)]
        return [
            tuple(x.unflatten(0, (count, length)).transpose(1, 2) for x in pair)
            for pair, (length, count) in zip(zip(*parts, strict=True), batches, strict=True)
        ]

    def grids(self, call: EncoderCall) -> Tensor:
        """(units, 3): frames, rows and columns of patches."""
        return call.arguments[f"{call.kind}_grid_thw"]

    def encoder_lengths(self, layer: int, call: EncoderCall) -> list[int]:
        return [rows * columns for frames, rows, columns in self.grids(call).tolist() for _ in range(frames)]

    def layouts(self, call: EncoderCall) -> list[PictureLayout]:
        found = []
        for frames, rows, columns in self.grids(call).tolist():
            name = "picture" if call.kind == "image" else "video"
            one = Map(name, (frames, rows // self.merge, columns // self.merge))
            found.append(PictureLayout(call.kind, (one,), one.tokens))
        return found

    def scores_on_slots(self, call: EncoderCall, scores: list[Tensor]) -> list[Tensor]:
        grids = self.grids(call)
        tokens = torch.cat([x.flatten(0, 1) for x in scores]).unflatten(0, (-1, self.merge**2)).mean(1)
        tokens = tokens[self.raster_order(grids).to(tokens.device)]
        return list(tokens.split((grids.prod(-1) // self.merge**2).tolist()))

    def _patches(self, call: EncoderCall) -> Tensor:
        """(patches, numbers) in the order of tokens, four in a row; windows are made later."""
        return call.arguments["pixel_values" if call.kind == "image" else "pixel_values_videos"]

    def pixels_on_slots(self, call: EncoderCall) -> list[Tensor]:
        tokens = self._patches(call).unflatten(0, (-1, self.merge**2)).flatten(1)
        return list(tokens.split((self.grids(call).prod(-1) // self.merge**2).tolist()))

    def pixels(self, call: EncoderCall) -> list[Tensor]:
        merge, grids = self.merge, self.grids(call)
        patch = self.model.config.vision_config.patch_size
        found = []
        units = self._patches(call).split(grids.prod(-1).tolist())
        for unit, (frames, rows, columns) in zip(units, grids.tolist(), strict=True):
            tokens = unit.view(frames, rows // merge, columns // merge, merge, merge, -1, patch, patch)
            found.append(tokens.permute(0, 5, 1, 3, 6, 2, 4, 7).flatten(5).flatten(2, 4))
        return found

    def with_pixels(self, call: EncoderCall, pixels: Sequence[Tensor]) -> EncoderCall:
        merge, patch = self.merge, self.model.config.vision_config.patch_size
        units, grids = [], []
        for unit in pixels:
            frames, _, *sides = unit.shape
            if any(side % (merge * patch) for side in sides):
                raise ValueError(f"the sides of a picture must be multiples of {merge * patch} pixels, got {sides}.")
            tokens = unit.unflatten(3, (-1, merge, patch)).unflatten(2, (-1, merge, patch))
            units.append(tokens.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(5).flatten(0, 4))
            grids.append([frames, *(side // patch for side in sides)])
        name = "pixel_values" if call.kind == "image" else "pixel_values_videos"
        changed = {name: torch.cat(units), f"{call.kind}_grid_thw": self.grids(call).new_tensor(grids)}
        return EncoderCall(call.kind, {**call.arguments, **changed})

    def spread_units(self, output: Any, index: Sequence[Tensor]) -> None:
        output.pooler_output = tuple(x[i] for x, i in zip(output.pooler_output, index, strict=True))

    def raster_order(self, grids: Tensor) -> Tensor:
        """(tokens,): where each token, in raster order, stands in the encoder's sequence."""
        return torch.arange(int(grids.prod(-1).sum()) // self.merge**2)


class Qwen2_5_VLIntegration(Qwen2VLIntegration):
    """`Qwen2_5_VLForConditionalGeneration`: most vision blocks look at windows only, and run in the order of these."""

    family = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)

    @property
    def attention_blocks(self) -> tuple[int, ...]:
        """The blocks with full attention: shares of attention within windows cannot be compared across them."""
        full = self.model.config.vision_config.fullatt_block_indexes
        last = len(self.all_encoder_layers) - 1
        return tuple(sorted(i for i in set(full) if i <= last)) or (last,)

    @property
    def scored_block(self) -> int:
        return self.attention_blocks[-1]

    def encoder_lengths(self, layer: int, call: EncoderCall) -> list[int]:
        vision = self.model.config.vision_config
        if layer in vision.fullatt_block_indexes:
            return super().encoder_lengths(layer, call)
        side = vision.window_size // self.merge // vision.patch_size * self.merge
        found = []
        for frames, rows, columns in self.grids(call).tolist():
            heights, widths = ([min(side, n - i) for i in range(0, n, side)] for n in (rows, columns))
            found += [h * w for h in heights for w in widths] * frames
        return found

    def raster_order(self, grids: Tensor) -> Tensor:
        vision = self.model.config.vision_config
        window_index, _ = get_vision_window_index(
            grids, spatial_merge_size=self.merge, window_size=vision.window_size, patch_size=vision.patch_size
        )
        return window_index.argsort()

    def frame_seconds(self, arguments: Mapping[str, Any]) -> Sequence[float] | None:
        seconds = arguments.get("second_per_grid_ts")
        return None if seconds is None else torch.as_tensor(seconds).tolist()
