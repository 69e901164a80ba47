"""Prompts with pictures and videos as a processor would have made them, the same way for every family in miniature.

`family.row(5, IMAGE, 7)` is a prompt of 5 text tokens, a picture and 7 text tokens, and `family.inputs(row, row)` a
padded batch.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PAD, IMAGE_TOKEN, VIDEO_TOKEN, START, END, LINE, FRAME, COLON = range(8)
FIRST_TEXT, VOCABULARY = 10, 96
IMAGE, VIDEO = "image", "video"


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture or a video in a prompt: its token ids, and what the model is given for it."""

    kind: str
    ids: Tensor
    data: dict[str, Tensor]

    @property
    def tokens(self) -> int:
        """Number of placeholders."""
        return int(((self.ids == IMAGE_TOKEN) | (self.ids == VIDEO_TOKEN)).sum())


@dataclasses.dataclass(frozen=True)
class Row:
    """A prompt."""

    ids: Tensor
    items: tuple[Item, ...]

    @property
    def visual(self) -> Tensor:
        """Bool (slots,): placeholders."""
        return (self.ids == IMAGE_TOKEN) | (self.ids == VIDEO_TOKEN)

    @property
    def tokens(self) -> int:
        return int(self.visual.sum())

    @property
    def text(self) -> int:
        return len(self.ids) - self.tokens

    def then(self, *more: Row | Tensor) -> Row:
        """The prompt with more behind it."""
        rows = [x if isinstance(x, Row) else Row(x, ()) for x in more]
        ids = torch.cat((self.ids, *(row.ids for row in rows)))
        return Row(ids, self.items + tuple(item for row in rows for item in row.items))


@dataclasses.dataclass(frozen=True)
class Family:
    """A family in miniature.

    Args:
        name: As the integration calls it; with the tower's name for the two LLaVAs.
        build: Makes the model.
        item: Makes the item of a kind and a number; numbers stand for different contents and sizes.
        kinds: What the family takes.
        typed: Whether the model is told which token is what (`mm_token_type_ids`).
    """

    name: str
    build: Callable[[], Any]
    item: Callable[[str, int], Item]
    kinds: tuple[str, ...] = (IMAGE,)
    typed: bool = False

    def model(self, attention: str = "sdpa", seed: int = 0) -> Any:
        """A fresh model, always with the same weights."""
        torch.manual_seed(seed)
        model = self.build()
        # Random weights of the usual size make attention nearly uniform, so that every selection looks alike.
        for name, parameter in model.named_parameters():
            if ("vision_tower" in name or "visual" in name) and parameter.ndim == 2 and "pos" not in name:
                torch.nn.init.normal_(parameter, std=0.25)
            elif "projector" in name and parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
            elif name.endswith(("position_embeddings", "position_embedding.weight", "pos_embed.weight", "cls_token")):
                torch.nn.init.normal_(parameter, std=0.3)
            elif "lambda_" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.0)
        model.set_attn_implementation(attention)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
        model.generation_config.suppress_tokens = list(range(FIRST_TEXT))
        return model.eval()

    def row(self, *parts: int | str, seed: int = 0) -> Row:
        """A prompt: numbers stand for so many text tokens, IMAGE and VIDEO for one of these."""
        generator = torch.Generator().manual_seed(seed)
        numbers = itertools.count(seed)
        pieces, items = [], []
        for part in parts:
            if isinstance(part, int):
                pieces.append(torch.randint(FIRST_TEXT, VOCABULARY, (part,), generator=generator))
            else:
                items.append(self.item(part, next(numbers)))
                pieces.append(items[-1].ids)
        return Row(torch.cat(pieces), tuple(items))

    def inputs(self, *rows: Row, side: str = "left", new: tuple[Row, ...] | None = None) -> dict[str, Tensor]:
        """What a processor makes of prompts; `new` are the rows whose pictures are passed, if not all of them."""
        longest = max(len(row.ids) for row in rows)
        ids, mask = [], []
        for row in rows:
            pad = torch.full((longest - len(row.ids),), PAD)
            ones, zeros = torch.ones(len(row.ids), dtype=torch.long), torch.zeros(len(pad), dtype=torch.long)
            ids.append(torch.cat((pad, row.ids) if side == "left" else (row.ids, pad)))
            mask.append(torch.cat((zeros, ones) if side == "left" else (ones, zeros)))
        made = {"input_ids": torch.stack(ids), "attention_mask": torch.stack(mask)}
        made |= collate([item for row in (rows if new is None else new) for item in row.items])
        if self.typed:
            made["mm_token_type_ids"] = (made["input_ids"] == IMAGE_TOKEN).int() + 2 * (
                made["input_ids"] == VIDEO_TOKEN
            ).int()
        return made


def collate(items: list[Item]) -> dict[str, Tensor]:
    """The pictures and videos of a batch, as a processor joins them."""
    made: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for item in items for name in item.data):
        parts = [item.data[name] for item in items if name in item.data]
        most = max(part.shape[1] if part.ndim == 5 else 0 for part in parts)
        if most and name == "pixel_values":  # tiles are padded to the picture with the most
            parts = [torch.nn.functional.pad(p, (0, 0) * 3 + (0, most - p.shape[1])) for p in parts]
        made[name] = torch.cat(parts)
    return made


def pixels(*shape: int, seed: int = 0) -> Tensor:
    """Smooth random pictures of this shape, (..., 3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    *lead, channels, height, width = shape
    count = int(torch.tensor(lead).prod()) if lead else 1
    coarse = torch.randn(count, channels, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine + 0.1 * torch.randn(count, channels, height, width, generator=generator)).view(shape)
