"""The teacher's help for the vision tower: what lies under each patch is known, so each patch is asked for it.

The heads exist during training only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vtprune.evals.relations import scene_relations
from vtprune.evals.scenes import CHARACTERS, COLOURS, SHAPES, SIZE, Scene, patch_truth
from vtprune.evals.tiny_llava import GRID, VISUAL_TOKENS

_PAIRS = len(COLOURS) * len(SHAPES)
# Colour, shape, character (background and "none" included), is it a centre, where is the centre.
_PATCH_OUTPUTS = (len(COLOURS) + 1, len(SHAPES) + 1, len(CHARACTERS) + 2, 1, 2)
_MOST_OBJECTS = 9


class Targets(NamedTuple):
    """What the tower should know of a picture; in a batch every tensor has a leading dimension.

    Attributes:
        words: (256, 3) int64, per patch. Colour and shape of the object under it (0 background, else 1 + place in
            `COLOURS`, `SHAPES`), and its character (0 background, 1 none, else 2 + place in `CHARACTERS`).
        centre: (256,) float32, 1.0 for patches that hold an object's centre.
        position: (256, 2) float32, centre of the patch's object as (x, y) from -1 to 1; 0 for background.
        relations: (256, 4) int64, see `vtprune.evals.relations`.
        whole: (69,) float32, of the whole picture: which (colour, shape) pairs and which characters are in it, as 0
            or 1, and the number of objects divided by 9.
    """

    words: Tensor
    centre: Tensor
    position: Tensor
    relations: Tensor
    whole: Tensor


def scene_targets(scene: Scene) -> Targets:
    """The targets of a scene."""
    truth = patch_truth(scene, GRID)
    words = np.zeros((VISUAL_TOKENS, 3), dtype=np.int64)
    position = np.zeros((VISUAL_TOKENS, 2), dtype=np.float32)
    whole = np.zeros(_PAIRS + len(CHARACTERS) + 1, dtype=np.float32)
    for number, obj in enumerate(scene.objects):
        colour, shape = list(COLOURS).index(obj.colour), SHAPES.index(obj.shape)
        character = 1 if obj.character is None else 2 + CHARACTERS.index(obj.character)
        under = truth.owner == number
        words[under] = (1 + colour, 1 + shape, character)
        position[under] = (2 * obj.x / SIZE - 1, 2 * obj.y / SIZE - 1)
        whole[colour * len(SHAPES) + shape] = 1
        if obj.character is not None:
            whole[_PAIRS + CHARACTERS.index(obj.character)] = 1
    whole[-1] = len(scene.objects) / _MOST_OBJECTS
    patches = torch.from_numpy(words), torch.from_numpy(truth.centre), torch.from_numpy(position)
    return Targets(*patches, scene_relations(scene), torch.from_numpy(whole))


class Readings(NamedTuple):
    """What the heads make of a tower's output: scores, and the two positions as in `Targets`."""

    colour: Tensor
    shape: Tensor
    character: Tensor
    centre: Tensor
    position: Tensor
    whole: Tensor


class Heads(nn.Module):
    """Linear heads on the tower's output, one for the patches, one for [CLS]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.patch = nn.Linear(width, sum(_PATCH_OUTPUTS))
        self.whole = nn.Linear(width, _PAIRS + len(CHARACTERS) + 1)

    def forward(self, states: Tensor) -> Readings:
        """Read a tower's output (batch, 1 + 256, width), [CLS] first."""
        states = self.norm(states)
        colour, shape, character, centre, position = self.patch(states[:, 1:]).split(_PATCH_OUTPUTS, dim=-1)
        return Readings(colour, shape, character, centre, position, self.whole(states[:, 0]))


def auxiliary_loss(readings: Readings, targets: Targets) -> Tensor:
    """How far the heads are off, one number.

    Background is most of a picture and says little, so its patches count less; so do objects without a character where
    the character is asked for.
    """
    colour, shape, character = targets.words.unbind(-1)
    objects = colour > 0
    printed = character > 1
    weight = torch.where(objects, 1.0, 0.15)
    loss = _weighted(readings.colour, colour, weight) + _weighted(readings.shape, shape, weight)
    weight = torch.where(printed, 1.0, torch.where(objects, 0.3, 0.1))
    loss = loss + 2 * _weighted(readings.character, character, weight)
    # About 6 of 256 patches are centres.
    found = readings.centre[..., 0].float()
    loss = loss + functional.binary_cross_entropy_with_logits(found, targets.centre, pos_weight=found.new_tensor(8.0))
    distance = (readings.position.float() - targets.position).square() * objects[..., None]
    loss = loss + distance.sum() / objects.sum().clamp(min=1)
    whole = readings.whole.float()
    present = functional.binary_cross_entropy_with_logits(whole[:, :-1], targets.whole[:, :-1])
    return loss + present + (whole[:, -1] - targets.whole[:, -1]).square().mean()


def centre_accuracy(readings: Readings, targets: Targets) -> dict[str, float]:
    """Share of objects whose colour, shape and character are right at the patch that holds their centre."""
    colour, shape, character = targets.words.unbind(-1)
    centres = targets.centre > 0
    printed = centres & (character > 1)
    asked = {
        "colour": (readings.colour, colour, centres),
        "shape": (readings.shape, shape, centres),
        "character": (readings.character, character, printed),
    }
    return {
        name: (scores.argmax(-1) == truth)[where].float().mean().item()
        for name, (scores, truth, where) in asked.items()
    }


def _weighted(scores: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    losses = functional.cross_entropy(scores.float().flatten(0, 1), truth.flatten(), reduction="none")
    return (losses.view_as(weight) * weight).sum() / weight.sum()
