"""InternVL 2.5 and 3: tiles with [CLS], a pixel shuffle of 2 x 2 patches into one token, tiles and frames in a row."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtprune.integrations.base import EncoderBlock, EncoderCall, Map, PictureLayout
from vtprune.integrations.tiles import TileIntegration

_LONGEST_LABEL = 16  # tokens between two frames, at most


class InternVLIntegration(TileIntegration):
    """`InternVLForConditionalGeneration`.

    The model gets tiles and is not told which belong together: tiles without text between them are one picture. The
    frames of a video are pictures of one tile with a label ("Frame1: ") before each; one-tile pictures whose labels
    count up from one are taken for the frames of one video.
    """

    family = "internvl"
    model_types = ("internvl",)
    joins_patches = True

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
        return EncoderBlock(layer, attention, norms, layer.layernorm_after, layer.mlp, "lambda_2", attention.v_proj)

    @property
    def has_cls(self) -> bool:
        return True

    @property
    def takes_videos(self) -> bool:
        return True  # as pictures with labels

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

    def pictures(self, row: np.ndarray, units: Sequence[PictureLayout], input_ids: Tensor | None) -> list[int]:
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
    """Units per picture, with one-tile pictures whose labels count up from one ("Frame1: ") joined to videos.

    Args:
        tiles: Units of each picture.
        gaps: Token ids between neighbouring pictures.
        opening: Token ids before the first picture.
    """
    joined = [tiles[0]]
    video: _Label | None = None
    for i, gap in enumerate(gaps):
        # A gap: the end of one picture, a line break, a label, the start of the next picture.
        short = tiles[i] == tiles[i + 1] == 1 and 4 <= len(gap) <= _LONGEST_LABEL
        label = gap[2:] if short else []
        if video is not None and video.number(label) != joined[-1] + 1:
            video = None
        elif video is None and label:
            video = _Label.learn(opening if i == 0 else gaps[i - 1], label)
        else:
            video = video if label else None
        if video is None:
            joined.append(tiles[i + 1])
        else:
            joined[-1] += 1
    return joined


@dataclasses.dataclass(frozen=True)
class _Label:
    """What the labels of frames have in common, in token ids: all but a number in digits."""

    before: list[int]
    behind: list[int]
    zero: int

    @staticmethod
    def learn(text: list[int], second: list[int]) -> _Label | None:
        """From the text that ends with the first label, and the second label; None if they are no 1 and 2."""
        if second[0] not in text:
            return None
        first = text[len(text) - 1 - text[::-1].index(second[0]) :]
        if len(first) != len(second):
            return None
        differ = [place for place, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
        # Digits have consecutive ids.
        if len(differ) != 1 or second[differ[0]] != first[differ[0]] + 1:
            return None
        return _Label(first[: differ[0]], first[differ[0] + 1 :], first[differ[0]] - 1)

    def number(self, label: list[int]) -> int | None:
        """The number on a label; None if it is another text."""
        end = len(label) - len(self.behind)
        digits = [token - self.zero for token in label[len(self.before) : end]]
        fits = label[: len(self.before)] == self.before and label[max(end, 0) :] == self.behind
        if not fits or not digits or not all(0 <= digit <= 9 for digit in digits):
            return None
        return int("".join(map(str, digits)))
