"""Heads that ask a model what it sees on its way to the answers: at the patches, at the visual tokens, in the decoder.

A visual token of these models stands for four patches, and each head asks a token for every one of the four: what is
asked for is not lost when patches are joined. The heads exist during training only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vtprune.evals.patch_targets import (
    CENTRE,
    CHARACTER,
    COLOUR,
    DIRECTION,
    OBJECTS,
    QUADRANT,
    RANK,
    SAME_COLOUR,
    SAME_SHAPE,
    SHAPE,
    SIZES,
)

PER_TOKEN = 4
"""Patches per visual token."""

_WHAT = (COLOUR, SHAPE, CHARACTER, CENTRE)
_NUMBERS = (SAME_SHAPE, SAME_COLOUR, OBJECTS)
_WHERE = (QUADRANT,)
_MOTION = (DIRECTION, RANK)
_BACKGROUND, _UNPRINTED, _CENTRE_WEIGHT = 0.15, 0.3, 4.0
_CHARACTER_SHARE, _OFFSET_SHARE, _NUMBER_SHARE, _PLACE_SHARE, _CLIP_SHARE = 2.0, 2.0, 0.5, 3.0, 2.0


class _Head(nn.Module):
    """A linear head for some columns of the words and two numbers of the place, for each of `patches` patches."""

    def __init__(self, width: int, columns: tuple[int, ...], numbers: int, patches: int) -> None:
        super().__init__()
        self.sizes, self.patches = (*(SIZES[column] for column in columns), numbers), patches
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, patches * sum(self.sizes))

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        """Scores for each column and the numbers: (..., patches, size), or (..., size) for a single patch."""
        read = self.linear(self.norm(states))
        return (read if self.patches == 1 else read.unflatten(-1, (self.patches, -1))).split(self.sizes, dim=-1)


class Teacher(nn.Module):
    """The heads, each with its loss.

    Args:
        tower: Width of the vision tower.
        decoder: Width of the decoder.
        motion: Whether the tower sees several frames at once and so is asked for directions, too.
    """

    def __init__(self, tower: int, decoder: int, motion: bool = False) -> None:
        super().__init__()
        self.patch = _Head(tower, _WHAT, 2, 1)
        self.motion = _Head(tower, (DIRECTION,), 0, 1) if motion else None
        self.token = _Head(decoder, _WHAT + _NUMBERS, 2, PER_TOKEN)
        self.middle = _Head(decoder, _WHERE + _MOTION, 2, PER_TOKEN)

    def patch_loss(self, states: Tensor, words: Tensor, place: Tensor) -> Tensor:
        """What the tower knows of each patch: states (batch, patches, width) and the targets of the patches."""
        *what, offset = self.patch(states)
        loss = _what_loss(what, words) + _OFFSET_SHARE * _distance(offset, place[..., 2:], words)
        return loss if self.motion is None else loss + _known(self.motion(states)[0], words[..., DIRECTION])

    def token_loss(self, features: Tensor, words: Tensor, place: Tensor, counting: Tensor) -> Tensor:
        """What a visual token knows on its way into the decoder.

        Args:
            features: (batch, tokens, width).
            words: Targets of the tokens' patches, (batch, tokens, 4, 10).
            place: (batch, tokens, 4, 4).
            counting: (tokens,) 1.0 for tokens whose part of the tower sees the whole picture, and so can count.
        """
        *read, offset = self.token(features)
        what, numbers = read[: len(_WHAT)], read[len(_WHAT) :]
        loss = _what_loss(what, words) + _OFFSET_SHARE * _distance(offset, place[..., 2:], words)
        for column, scores in zip(_NUMBERS, numbers, strict=True):
            weight = torch.where(words[..., COLOUR] > 0, 1.0, 0.1 if column == OBJECTS else 0.02)
            loss = loss + _NUMBER_SHARE * _weighted(scores, words[..., column], weight * counting[None, :, None])
        return loss

    def middle_loss(self, states: Tensor, words: Tensor, place: Tensor) -> Tensor:
        """What the decoder knows half-way through, where a token's position tells it the place; in clips also motion.

        Args:
            states: (batch, tokens, width).
            words: Targets of the tokens' patches, (batch, tokens, 4, 10).
            place: (batch, tokens, 4, 4).
        """
        quadrant, direction, rank, centre = self.middle(states)
        loss = _weighted(quadrant, words[..., QUADRANT], (words[..., QUADRANT] > 0).float())
        loss = loss + _PLACE_SHARE * _distance(centre, place[..., :2], words)
        for column, scores in ((DIRECTION, direction), (RANK, rank)):
            loss = loss + _CLIP_SHARE * _known(scores, words[..., column])
        return loss

    def centres_right(self, states: Tensor, words: Tensor) -> dict[str, float]:
        """Share of objects whose colour, shape and character the tower knows at their centre."""
        centres = words[..., CENTRE] > 0
        asked = {"colour": (COLOUR, centres), "shape": (SHAPE, centres)}
        asked["character"] = (CHARACTER, centres & (words[..., CHARACTER] > 1))
        read = self.patch(states)
        right = {name: read[column].argmax(-1) == words[..., column] for name, (column, _) in asked.items()}
        return {name: right[name][where].float().mean().item() for name, (_, where) in asked.items()}


def _what_loss(scores: list[Tensor], words: Tensor) -> Tensor:
    """Background is most of a picture and says little, so it counts less; so do objects without a character."""
    objects = words[..., COLOUR] > 0
    weight = torch.where(objects, 1.0, _BACKGROUND)
    printed = torch.where(words[..., CHARACTER] > 1, 1.0, torch.where(objects, _UNPRINTED, 0.1))
    centre = torch.where(words[..., CENTRE] > 0, _CENTRE_WEIGHT, 1.0)
    loss = _weighted(scores[0], words[..., COLOUR], weight) + _weighted(scores[1], words[..., SHAPE], weight)
    loss = loss + _CHARACTER_SHARE * _weighted(scores[2], words[..., CHARACTER], printed)
    return loss + _weighted(scores[3], words[..., CENTRE], centre)


def _weighted(scores: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    losses = functional.cross_entropy(scores.float().flatten(0, -2), truth.flatten(), reduction="none")
    return (losses.view_as(weight) * weight).sum() / weight.sum().clamp(min=1)


def _known(scores: Tensor, truth: Tensor) -> Tensor:
    """The loss over what is known."""
    return _weighted(scores, truth.clamp(min=0), (truth >= 0).float())


def _distance(read: Tensor, truth: Tensor, words: Tensor) -> Tensor:
    objects = words[..., COLOUR] > 0
    return ((read.float() - truth).square() * objects[..., None]).sum() / objects.sum().clamp(min=1)
