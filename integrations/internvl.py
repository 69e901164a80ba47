"""InternVL 2.5 and 3: tiles with [CLS], a pixel shuffle of 2 x 2 patches into one token, tiles and frames in a row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.integrations.base import EncoderBlock, EncoderCall, Map, PictureLayout
from vtprune.integrations.tiles import TileIntegration

_LONGEST_LABEL = 16  # tokens between two frames, at most


class InternVLIntegration(TileIntegration):
    """`InternVLForConditionalGeneration`.

    The model gets tiles and is not told which belong together: tiles without text between them are one picture. The
    frames of a video are pictures of one tile with a label ("Frame1: ") before each; one-tile pictures whose labels
    begin and end alike are taken for the frames of one video.
    """

    family = "internvl"
    model_types = ("internvl",)

    def __init__(self, model: Any) -> None:
        super(TileIntegration, self).__init__(model)
        self._check_feature_layer()
        ratio = self.model.config.downsample_ratio
        self.merge = round(1 / ratio)
        if self.merge * ratio != 1 or self.side % self.merge:
            raise ValueError(
                f"{self.family_name} has downsample_ratio {ratio!r} on {self.side} patches per side; supported: ratios "
                "1 / n for whole numbers n that divide the side."
            )

    @property
    def all_encoder_layers(self) -> nn.ModuleList:
        return self.multimodal.vision_tower.encoder.layer

    def _block(self, layer: Any) -> EncoderBlock:
        attention = layer.attention
        # The norms of queries and keys are identities where the model has none.
        norms = (attention.q_norm, attention.k_norm)
        return EncoderBlock(layer, attention, norms, layer.layernorm_after, layer.mlp, "lambda_2")

    @property
    def has_cls(self) -> bool:
        return True

    @property
    def side(self) -> int:
        vision = self.model.config.vision_config
        return vision.image_size[0] // vision.patch_size[0]

    def patches_per_token(self, call: EncoderCall) -> int:
        return self.merge

    def layouts(self, call: EncoderCall) -> list[PictureLayout]:
        side = self.side // self.merge
        one = Map("tile", (1, side, side))
        return [PictureLayout("image", (one,), one.tokens)] * self.tiles(call)

    def tiles(self, call: EncoderCall) -> int:
        return call.arguments["pixel_values"].shape[0]

    def assemble(self, call: EncoderCall, values: Tensor) -> list[Tensor]:
        return list(values)

    def sources(self, call: EncoderCall, like: Tensor) -> list[Tensor]:
        tokens = (self.side // self.merge) ** 2
        return list(torch.arange(len(like) * tokens, device=like.device).view(-1, tokens))

    def pictures(self, row: Tensor, units: Sequence[PictureLayout], input_ids: Tensor | None) -> list[int]:
        slots = row.tolist()
        visual = [i for i, unit in enumerate(slots) if unit >= 0]
        if not visual:
            return []
        counts, gaps = [1], []  # tiles of each picture; the text before each but the first: its first slot and end
        for before, here in itertools.pairwise(visual):
            if here > before + 1:
                counts.append(1)
                gaps.append((before + 1, here))
            elif slots[here] != slots[before]:
                counts[-1] += 1
        if input_ids is None:
            return counts
        ids = input_ids.tolist()
        return _join_frames(counts, [ids[a:b] for a, b in gaps], ids[max(0, visual[0] - _LONGEST_LABEL) : visual[0]])


def _join_frames(tiles: list[int], gaps: list[list[int]], opening: list[int]) -> list[int]:
    """Units per picture, with labelled one-tile pictures in a row joined to videos.

    Args:
        tiles: Units of each picture.
        gaps: Token ids between neighbouring pictures.
        opening: Token ids before the first picture.
    """
    joined = [tiles[0]]
    label: list[int] | None = None  # of the video that is being joined
    for i, gap in enumerate(gaps):
        # A gap: the end of one picture, a label, the start of the next. Without a label, two or three tokens.
        labelled = 4 <= len(gap) <= _LONGEST_LABEL and tiles[i] == tiles[i + 1] == 1
        if label is None:
            before = opening if i == 0 else gaps[i - 1]
            labelled = labelled and before[-1:] == gap[-1:] and gap[2] in before
        else:
            labelled = labelled and label[:3] == gap[:3] and label[-1:] == gap[-1:]
        if labelled:
            joined[-1] += 1
            label = gap
        else:
            joined.append(tiles[i + 1])
            label = None
    return joined
