"""Heads of decoder layers that attend to pictures: chosen from what they attend to, and kept in a small file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vtprune.methods.base import ModelInfo

Heads = tuple[tuple[int, ...], ...]
"""Per layer, the heads that attend to visual tokens."""


def votes(visual: Tensor, other: Tensor, threshold: float, first: int) -> Tensor:
    """In how many samples a head gives visual tokens more than `threshold` of what it gives all others.

    Args:
        visual: (layers, samples, heads), attention to visual tokens.
        other: The same to all others.
        threshold: What the ratio must exceed.
        first: First layer to which that applies; heads before it get every sample's vote.

    Returns:
        (layers, heads).
    """
    for_it = visual.float() > threshold * other.float()
    for_it[:first] = True
    return for_it.sum(1)


def chosen(mask: Tensor) -> Heads:
    """Heads that bool (layers, heads) marks."""
    return tuple(tuple(row.nonzero().squeeze(1).tolist()) for row in mask)


def save_heads(path: str | Path, heads: Sequence[Sequence[int]]) -> None:
    """Write heads to a small JSON file."""
    Path(path).write_text(json.dumps({"heads": [list(layer) for layer in heads]}) + "\n")


def load_heads(path: str | Path) -> Heads:
    """Read what `save_heads` wrote.

    Raises:
        ValueError: The file holds something else.
    """
    try:
        found = json.loads(Path(path).read_text())["heads"]
        return tuple(tuple(int(head) for head in layer) for layer in found)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"heads must be a file written by save_heads, got {str(path)!r}: {error}.") from error


def check_heads(heads: Heads, model: ModelInfo) -> Heads:
    """Heads of a model, in order.

    Raises:
        ValueError: They are another model's.
    """
    known = range(model.decoder_heads)
    if len(heads) != model.decoder_layers or any(head not in known for layer in heads for head in layer):
        raise ValueError(
            f"heads must name, for each of {model.decoder_layers} decoder layers, some of its {len(known)} heads; got "
            f"{len(heads)} layers with heads up to {max((h for layer in heads for h in layer), default=None)}."
        )
    return tuple(tuple(sorted(set(layer))) for layer in heads)
