"""Models with a published architecture and random weights: `random:NAME`, and `random:NAME@small`.

A small model has the tokens per picture, the tiles, windows, merges and special layers of the full one; widths are
divided by 16, six layers stay in the vision tower and in the decoder, and the vocabulary has 512 ids. Pictures take
as many tokens as in the published model; text takes more, one per byte.

`llava-1.5-7b@small` is the one that is timed on CPUs and is larger, so that its layers and not Python take the time:
twelve decoder layers 768 wide, and nine layers 192 wide in the tower, the published proportion between the two.
"""

from __future__ import annotations

import difflib
from typing import Any

from transformers import PreTrainedConfig

from vtprune.published.base import Published
from vtprune.published.internvl import INTERNVL3
from vtprune.published.llava import LLAVA, LLAVA_NEXT
from vtprune.published.llava_onevision import LLAVA_ONEVISION
from vtprune.published.qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL

MODELS: dict[str, Published] = {
    model.name: model for model in (LLAVA, LLAVA_NEXT, LLAVA_ONEVISION, QWEN2_VL, QWEN2_5_VL, QWEN3_VL, INTERNVL3)
}
PREFIX = "random:"
_SMALL = "@small"

__all__ = ["MODELS", "PREFIX", "Published", "config", "find", "parse", "processor"]


def parse(name: str) -> tuple[Published, bool]:
    """The model that `random:NAME` or `random:NAME@small` asks for, and whether the small one; letter case is ignored.

    Raises:
        ValueError: There is none.
    """
    base, mark, size = name.lower().removeprefix(PREFIX).partition("@")
    if mark and mark + size != _SMALL:
        raise ValueError(f"unknown size {mark + size!r} in {name!r}; there is {_SMALL}, and without it the full size.")
    return find(base), bool(mark)


def find(name: str) -> Published:
    """The published model of a name, without `random:`; letter case and an ending "-hf" are ignored.

    Raises:
        ValueError: There is none.
    """
    wanted = name.lower().removesuffix("-hf").removesuffix("-instruct")
    names = {alias: model for model in MODELS.values() for alias in (model.name, *model.aliases)}
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.4)
    hint = f" Did you mean {PREFIX + near[0]!r}?" if near else ""
    raise ValueError(f"unknown architecture {name!r}.{hint} Published architectures: {', '.join(MODELS)}.")


def config(name: str, small: bool = False) -> PreTrainedConfig:
    """The config with the published numbers, or with the small ones.

    Raises:
        ValueError: There is no published model of that name.
    """
    published = find(name)
    return published.make_config(published.sized(small), small)


def processor(name: str, small: bool = False) -> Any:
    """The processor with the published settings, around a tokenizer of bytes and special tokens.

    Raises:
        ValueError: There is no published model of that name.
    """
    published = find(name)
    vocabulary = published.sized(small)
    length = published.make_config(vocabulary, small).get_text_config().max_position_embeddings
    return published.make_processor(vocabulary.tokenizer(length))
